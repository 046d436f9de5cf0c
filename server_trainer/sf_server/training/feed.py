"""Batches on their way from the store to the training step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sf_model.back import BackEnd
from sf_server.store.stored import StoredSample
from sf_server.training.batch_tensors import BatchTensors, make_batch


class SampleSource(Protocol):
    """Where samples are read from: the store itself, or what was lifted from it."""

    def load(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Samples in the order asked for."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Fed:
    """A batch and the samples it is made of."""

    seqs: Sequence[int]
    tensors: BatchTensors


class Feed:
    """Loads, decodes and pads the batches of a plan."""

    def __init__(self, source: SampleSource, back_end: BackEnd, device: torch.device) -> None:
        self._source = source
        self._back_end = back_end
        self._device = device

    def batches(self, plan: Sequence[Sequence[int]]) -> Iterator[Fed]:
        """The batches of a plan, in its order."""
        for seqs in plan:
            yield Fed(seqs=seqs, tensors=make_batch(self._source.load(seqs), self._back_end, self._device))
