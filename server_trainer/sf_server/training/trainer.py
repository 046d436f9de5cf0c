"""The training loop: from stored samples to an adapter. Reads top to bottom.

The first epoch follows the stream of arriving samples window by window; later epochs run over the whole store. Every
sample is trained on exactly `epochs` times, also when the process is killed: what was trained since the last checkpoint
is forgotten with the weights it changed, and trained again from there.
"""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import torch

from sf_contract.errors import DataError, TrainingFailed
from sf_contract.messages import Role
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.store.stored import SampleInfo, held_back
from sf_server.training.checkpoints import Checkpoints, Progress, Snapshot
from sf_server.training.feed import Fed, Feed
from sf_server.training.learner import Learner, StepResult
from sf_server.training.metrics import MetricsLog
from sf_server.training.schedule import Position, falling_part, learning_rate_factor, plan_batches, window_is_ready
from sf_server.training.validation import Score, score_samples

MAX_SKIPPED_IN_A_ROW: Final = 10
POLL_S: Final = 0.2
REPORT_EVERY_S: Final = 10.0
HELD_BACK_SHOWN: Final = 3


class Ending(enum.Enum):
    """How a call of `Trainer.run` ended."""

    DONE = "done"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop needs of the world outside.

    Attributes:
        say: tells the person watching.
        clock: seconds, monotonic.
        stopped: True once training should save and leave.
        wait: waits some seconds, or less when stopped.
        train_device: where the model is.
        feed: brings the batches; None: straight from the store.
        prepare: called with the samples of a window before any of its batches is brought.
    """

    say: Callable[[str], None]
    stopped: Callable[[], bool]
    wait: Callable[[float], object]
    train_device: torch.device
    clock: Callable[[], float] = time.monotonic
    feed: Feed | None = None
    prepare: Callable[[Sequence[SampleInfo]], object] = len


class Trainer:
    """Trains a learner on a store until every sample has been seen `epochs` times."""

    def __init__(
        self,
        learner: Learner,
        store: Store,
        settings: TrainSettings,
        *,
        checkpoints: Checkpoints,
        metrics: MetricsLog,
        around: Surroundings,
    ) -> None:
        self._learner = learner
        self._store = store
        self._settings = settings
        self._checkpoints = checkpoints
        self._metrics = metrics
        self._around = around
        self._feed = around.feed or Feed(store, learner.back_end, around.train_device)
        self._skipped_in_a_row = 0
        self._saved_s = around.clock()
        self._reported_s = around.clock()
        self._waiting_since_s: float | None = None
        self.progress = Progress()
        self.trained: Counter[int] = Counter()
        self.last_score: Score | None = None

    def restore(self) -> bool:
        """Go on from the newest checkpoint; False when there is none."""
        snapshot = self._checkpoints.load_newest()
        if snapshot is None:
            return False
        self.progress = snapshot.progress
        self.trained = Counter(dict(snapshot.trained.tolist()))
        self._learner.restore(snapshot.parameters, snapshot.optimizer)
        torch.set_rng_state(snapshot.random)
        return True

    def run(self) -> Ending:
        """Train to the end, or until stopped; either way a checkpoint holds the result.

        Raises:
            DataError: the devices finished without a training sample.
            TrainingFailed: too many steps in a row were not finite.
        """
        while self.progress.position.epoch <= self._settings.epochs and not self._around.stopped():
            if self.progress.position.window_is_open:
                self._train_window()
            elif self._epoch_is_over():
                self._end_epoch()
            else:
                self._open_window_or_wait()
        self._save()
        if self.progress.position.epoch <= self._settings.epochs:
            return Ending.STOPPED
        self._check_counts()
        return Ending.DONE

    def _open_window_or_wait(self) -> None:
        """Choose the next window; while its samples have not arrived, wait a moment."""
        position = self.progress.position
        # Asked before the samples are listed: a device is finished only after its last sample is stored.
        complete = self.progress.stream_end > 0 or self._data_is_complete()
        wanted = self._settings.window_samples
        limit = None if self.progress.stream_end else wanted
        infos = self._store.sample_infos(role=Role.TRAIN, after_seq=position.after_seq, limit=limit)
        if window_is_ready(len(infos), wanted=wanted, complete=complete):
            self._move(position.open_window(self.progress.stream_end or infos[-1].seq))
            self._waiting_since_s = None
        else:
            self._report_waiting(len(infos))
            self._around.wait(POLL_S)

    def _train_window(self) -> None:
        """Train on the rest of the open window; stops between batches when asked to."""
        position = self.progress.position
        samples = self._window_samples(position)
        self._around.prepare(samples)
        for batch in self._feed.batches(self._window_batches(samples)[position.next_batch :]):
            if self._around.stopped():
                return
            self._guard_finite(self._train_batch(batch))
            if self._around.clock() - self._saved_s >= self._settings.checkpoint_every_s:
                self._save()
        self._move(self.progress.position.window_done())

    def _window_samples(self, position: Position) -> list[SampleInfo]:
        infos = self._store.sample_infos(role=Role.TRAIN, after_seq=position.after_seq)
        return [info for info in infos if info.seq <= position.upto_seq]

    def _window_batches(self, samples: Sequence[SampleInfo]) -> list[list[int]]:
        return plan_batches(
            samples,
            seed=self._settings.seed,
            position=self.progress.position,
            max_tokens=self._settings.batch_tokens,
            max_samples=self._settings.batch_samples,
        )

    def _train_batch(self, batch: Fed) -> StepResult:
        before = self.progress
        began_s = self._around.clock()
        factor = self._rate_factor()
        result = self._learner.step(batch.tensors, rate_factor=factor)
        self.trained.update(batch.seqs)
        later = before.position.epoch > 1
        self.progress = msgspec.structs.replace(
            before,
            step=before.step + 1,
            position=before.position.batch_done(),
            later_done=before.later_done + (len(batch.seqs) if later else 0),
            skipped_steps=before.skipped_steps + result.was_skipped,
            tokens=before.tokens + batch.tensors.tokens,
        )
        self._log_step(result, batch, factor, seconds=self._around.clock() - began_s)
        return result

    def _rate_factor(self) -> float:
        progress = self.progress
        falling = falling_part(
            done=self.trained.total(),
            later_done=progress.later_done,
            samples=progress.samples,
            expected=self._settings.expect_samples,
            epochs=self._settings.epochs,
        )
        return learning_rate_factor(step=progress.step, warmup_steps=self._settings.warmup_steps, progress=falling)

    def _epoch_is_over(self) -> bool:
        position = self.progress.position
        if self.progress.stream_end:
            return position.after_seq >= self.progress.stream_end
        # In this order: a device is finished only after its last sample is stored.
        if not self._data_is_complete():
            return False
        return not self._store.sample_infos(role=Role.TRAIN, after_seq=position.after_seq, limit=1)

    def _end_epoch(self) -> None:
        progress = self.progress
        if not self.trained:
            raise DataError(
                "the devices have finished, and none of them sent a training sample",
                cure="check the devices' --data and --role, and their reports of skipped rows",
            )
        if not progress.stream_end:
            progress = msgspec.structs.replace(
                progress, stream_end=progress.position.after_seq, samples=len(self.trained)
            )
        epoch = progress.position.epoch
        self.progress = msgspec.structs.replace(progress, position=progress.position.next_epoch())
        self._save()
        score = self.last_score = self.validate() if self._settings.validate else None
        if score is not None:
            self._metrics.write({"kind": "validation", "epoch": epoch, "step": progress.step, **score.as_dict()})
        said = "" if score is None else f"; held-out samples: {score.one_line()}"
        self._around.say(f"epoch {epoch} of {self._settings.epochs} done after {progress.step} steps{said}")

    def validate(self) -> Score | None:
        """Score on the samples that the devices held out; None when there are none."""
        infos = self._store.sample_infos(role=Role.VALIDATION)
        if not infos:
            return None
        return score_samples(
            self._learner.back_end,
            self._store,
            infos,
            device=self._around.train_device,
            max_tokens=self._settings.batch_tokens,
        )

    def _data_is_complete(self) -> bool:
        counts = self._store.counts()
        if self._settings.expect_devices is not None:
            return counts.finished_devices >= self._settings.expect_devices
        return counts.train_samples >= (self._settings.expect_samples or 0)

    def _guard_finite(self, result: StepResult) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if result.was_skipped else 0
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingFailed(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row gave no finite gradient (last loss {result.loss})",
                cure="lower --learning-rate, or use --dtype fp32; the last checkpoint is intact",
            )

    def _check_counts(self) -> None:
        epochs = self._settings.epochs
        wrong = {seq: times for seq, times in self.trained.items() if times != epochs}
        if wrong:
            seq, times = next(iter(wrong.items()))
            raise TrainingFailed(
                f"{len(wrong)} samples were not trained exactly {epochs} times: sample {seq} was trained {times} times",
                cure="please report this with the run's metrics.jsonl; the store and the adapter are intact",
            )

    def _move(self, position: Position) -> None:
        self.progress = msgspec.structs.replace(self.progress, position=position)

    def _save(self) -> None:
        self._checkpoints.save(
            Snapshot(
                progress=self.progress,
                parameters=dict(self._learner.parameters),
                optimizer=self._learner.optimizer_state(),
                random=torch.get_rng_state(),
                trained=torch.tensor(sorted(self.trained.items()), dtype=torch.int64).reshape(-1, 2),
            )
        )
        self._saved_s = self._around.clock()

    def _log_step(self, result: StepResult, batch: Fed, rate_factor: float, *, seconds: float) -> None:
        progress = self.progress
        tokens = batch.tensors.tokens
        self._metrics.write(
            {
                "kind": "step",
                "step": progress.step,
                "epoch": progress.position.epoch,
                "loss": result.loss,
                "gradient_norm": result.gradient_norm,
                "rate_factor": rate_factor,
                "samples": len(batch.seqs),
                "tokens": tokens,
                "seconds": seconds,
                "skipped": result.was_skipped,
                "samples_trained": sum(self.trained.values()),
            }
        )
        if self._report_is_due():
            self._around.say(
                f"epoch {progress.position.epoch} of {self._settings.epochs}, step {progress.step}, "
                f"loss {result.loss:.4f}, {tokens / max(seconds, 1e-9):.0f} tokens/s"
            )

    def _report_waiting(self, waiting_samples: int) -> None:
        now_s = self._around.clock()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if now_s - self._waiting_since_s < REPORT_EVERY_S or not self._report_is_due():
            return
        counts, held = self._store.counts(), held_back(self._store.device_summaries())
        expected = self._settings.expect_devices
        devices = (
            f"{counts.finished_devices} of {expected} devices" if expected else f"{counts.finished_devices} devices"
        )
        self._around.say(
            f"waiting for samples since {now_s - self._waiting_since_s:.0f} s: {counts.train_samples} stored, "
            f"{waiting_samples} of {self._settings.window_samples} for the next window, {devices} finished"
            + "".join(f"; {device}" for device in held[:HELD_BACK_SHOWN])
        )

    def _report_is_due(self) -> bool:
        now_s = self._around.clock()
        if now_s - self._reported_s < REPORT_EVERY_S:
            return False
        self._reported_s = now_s
        return True
