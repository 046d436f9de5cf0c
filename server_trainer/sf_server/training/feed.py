"""Batches on their way from the store to the training step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from sf_model.back import Segment
from sf_server.store.stored import StoredSample
from sf_server.training.batch_tensors import BatchTensors, make_batch

_CPU = torch.device("cpu")


class SampleSource(Protocol):
    """Where samples are read from: the store itself, or what was lifted from it."""

    def load(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Samples in the order asked for."""
        ...


OpenSource = Callable[[], AbstractContextManager[SampleSource]]
"""Opens a source for the thread it is called in; entered and left there."""


@dataclass(frozen=True, slots=True, eq=False)
class Fed:
    """A batch and the samples it is made of."""

    seqs: Sequence[int]
    tensors: BatchTensors


@dataclass(frozen=True, slots=True)
class _Failure:
    """What was raised while batches were prepared."""

    problem: BaseException


class Feed:
    """Loads, decodes and pads the batches of a plan.

    Args:
        source: read in the thread that asks for batches.
        prefetch: batches that are kept ready by a thread of their own; 0: each is made when it is asked for.
        open_source: for that thread; without it nothing is prefetched.
    """

    def __init__(
        self,
        source: SampleSource,
        back_end: Segment,
        device: torch.device,
        *,
        prefetch: int = 0,
        open_source: OpenSource | None = None,
    ) -> None:
        self._source = source
        self._back_end = back_end
        self._device = device
        self._prefetch = prefetch
        self._open_source = open_source

    def batches(self, plan: Sequence[Sequence[int]]) -> Iterator[Fed]:
        """The batches of a plan, in its order. What goes wrong with one is raised when it is asked for."""
        if self._prefetch and self._open_source:
            yield from self._prefetched(plan, self._open_source)
            return
        for seqs in plan:
            yield Fed(seqs=seqs, tensors=make_batch(self._source.load(seqs), self._back_end, self._device))

    def _prefetched(self, plan: Sequence[Sequence[int]], open_source: OpenSource) -> Iterator[Fed]:
        ready: queue.SimpleQueue[Fed | _Failure | None] = queue.SimpleQueue()
        room, stopped = threading.Semaphore(self._prefetch), threading.Event()

        def prepare() -> None:
            try:
                with open_source() as source:
                    for seqs in plan:
                        room.acquire()
                        if stopped.is_set():
                            return
                        ready.put(self._prepared(seqs, source))
                ready.put(None)
            except BaseException as problem:  # goes on in the thread that asks for the batches
                ready.put(_Failure(problem))

        thread = threading.Thread(target=prepare, name="prefetch", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, _Failure):
                    raise item.problem
                room.release()
                yield Fed(seqs=item.seqs, tensors=_moved(item.tensors, self._device))
        finally:
            stopped.set()
            room.release()
            thread.join()

    def _prepared(self, seqs: Sequence[int], source: SampleSource) -> Fed:
        tensors = make_batch(source.load(seqs), self._back_end, _CPU)
        return Fed(seqs=seqs, tensors=_pinned(tensors) if self._device.type == "cuda" else tensors)


def _pinned(batch: BatchTensors) -> BatchTensors:
    """In memory that the GPU copies from on its own."""
    return replace(batch, rows=batch.rows.pin_memory(), mask=batch.mask.pin_memory(), labels=batch.labels.pin_memory())


def _moved(batch: BatchTensors, device: torch.device) -> BatchTensors:
    if device.type == "cpu":
        return batch
    return replace(
        batch,
        rows=batch.rows.to(device, non_blocking=True),
        mask=batch.mask.to(device, non_blocking=True),
        labels=batch.labels.to(device, non_blocking=True),
    )
