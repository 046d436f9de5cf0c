"""What training tells: a line in the metrics for every step, and every ten seconds one for the person watching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.store.stored import held_back
from sf_server.training.checkpoints import Progress
from sf_server.training.feed import Fed
from sf_server.training.learner import StepResult
from sf_server.training.metrics import MetricsLog
from sf_server.training.surroundings import Surroundings

REPORT_EVERY_S: Final = 10.0
HELD_BACK_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step that is done: its batch, its outcome, the part of the peak learning rate, and how long it took."""

    batch: Fed
    result: StepResult
    rate_factor: float
    seconds: float


class Reporter:
    """Tells how training goes on, and what it waits for."""

    def __init__(self, settings: TrainSettings, store: Store, *, metrics: MetricsLog, around: Surroundings) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._around = around
        self._reported_s = around.clock()

    def step(self, progress: Progress, step: Step) -> None:
        """A step is done."""
        tokens, result = step.batch.tensors.tokens, step.result
        self._metrics.write(
            {
                "kind": "step",
                "step": progress.step,
                "epoch": progress.position.epoch,
                "loss": result.loss,
                "gradient_norm": result.gradient_norm,
                "rate_factor": step.rate_factor,
                "samples": len(step.batch.seqs),
                "tokens": tokens,
                "seconds": step.seconds,
                "skipped": result.was_skipped,
                "samples_trained": progress.samples_trained,
            }
        )
        if self._is_due():
            self._around.say(
                f"epoch {progress.position.epoch} of {self._settings.epochs}, step {progress.step}, "
                f"loss {result.loss:.4f}, {tokens / max(step.seconds, 1e-9):.0f} tokens/s"
            )

    def waiting(self, *, samples: int, wanted: int | None, waited_s: float) -> None:
        """Training has nothing to do: so many samples of the next window are there."""
        if waited_s < REPORT_EVERY_S or not self._is_due():
            return
        counts, held = self._store.counts(), held_back(self._store.device_summaries())
        expected = self._settings.expect_devices
        devices = (
            f"{counts.finished_devices} of {expected} devices" if expected else f"{counts.finished_devices} devices"
        )
        window = f"{samples} of {wanted} for the next window" if wanted else "all of them are waited for (--no-pool)"
        self._around.say(
            f"waiting for samples since {waited_s:.0f} s: {counts.train_samples} stored, {window}, {devices} finished"
            + "".join(f"; {device}" for device in held[:HELD_BACK_SHOWN])
        )

    def _is_due(self) -> bool:
        now_s = self._around.clock()
        if now_s - self._reported_s < REPORT_EVERY_S:
            return False
        self._reported_s = now_s
        return True
