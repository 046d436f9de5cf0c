"""What the server's trainer would do with a store, without computing anything: its batches in order, and their learning rates.

The control trains on exactly these. The trainer itself is asked, with a learner that learns nothing, so the control follows
whatever the schedule does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from sf_bench.quality.server_run import Sender, fill_store, no_rows
from sf_contract.samples import TokenizedSample
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.feed import Fed, Feed
from sf_server.training.learner import Learner, StepResult
from sf_server.training.metrics import MetricsLog
from sf_server.training.trainer import Surroundings, Trainer


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One optimizer step: indices of its samples, and the part of the peak learning rate."""

    samples: tuple[int, ...]
    rate_factor: float


def rehearse(
    samples: Sequence[TokenizedSample], settings: TrainSettings, *, names: Sequence[str], holders: Sequence[int]
) -> list[PlannedStep]:
    """The steps of a whole training on these samples, arriving in their order.

    Args:
        settings: of the training.
        names: of the devices.
        holders: index of the device that holds each sample.
    """
    recorder = _Recorder()
    with tempfile.TemporaryDirectory(prefix="sf-bench-rehearsal-") as scratch:
        folder = Path(scratch)
        senders = [Sender(name=name, bundle_id="0" * 64, rows_of=no_rows) for name in names]
        fill_store(folder / "store.sqlite", samples, senders=senders, holders=holders, say=lambda _: None)
        around = Surroundings(
            say=lambda _: None,
            stopped=lambda: False,
            wait=lambda _: None,
            train_device=torch.device("cpu"),
            feed=cast(Feed, recorder),
        )
        with (
            Store.open_read_only(folder / "store.sqlite") as store,
            MetricsLog(folder / "metrics.jsonl", after_step=0) as metrics,
        ):
            Trainer(
                cast(Learner, recorder),
                store,
                settings,
                checkpoints=Checkpoints(folder / "checkpoints"),
                metrics=metrics,
                around=around,
            ).run()
    return recorder.steps


class _Recorder:
    """Feed and learner at once: notes what it is fed, and at which rate it should learn from it."""

    def __init__(self) -> None:
        self.steps: list[PlannedStep] = []
        self._fed: Sequence[int] = ()

    def batches(self, plan: Sequence[Sequence[int]]) -> Iterator[Fed]:
        for seqs in plan:
            self._fed = seqs
            empty = torch.zeros(len(seqs), 0)
            tensors = BatchTensors(rows=empty, mask=empty, labels=empty, tokens=0)
            yield Fed(seqs=seqs, tensors=tensors)

    def step(self, batch: BatchTensors, *, rate_factor: float) -> StepResult:
        del batch
        self.steps.append(PlannedStep(samples=tuple(seq - 1 for seq in self._fed), rate_factor=rate_factor))
        return StepResult(loss=0.0, gradient_norm=0.0, was_skipped=False)

    def state(self) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Mapping[str, torch.Tensor]]]:
        return {}, {}
