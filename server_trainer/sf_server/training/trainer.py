"""The training loop: from stored samples to an adapter. Reads top to bottom.

The first epoch follows the stream of arriving samples window by window; later epochs run over the whole store. Every
sample is trained on exactly `epochs` times, also when the process is killed: what was trained since the last checkpoint
is forgotten with the weights it changed, and trained again from there.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from sf_contract.errors import DataError, DiskFull, TrainingFailed
from sf_contract.messages import Role
from sf_server.scale.together import Alone
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.store.stored import SampleInfo
from sf_server.training.balance import WindowWeights
from sf_server.training.checkpoints import BestScore, Checkpoints, Progress
from sf_server.training.failures import Attempt, FiniteGuard, memory_by_name
from sf_server.training.feed import Fed, Feed
from sf_server.training.learner import Learner, StepResult
from sf_server.training.marks import Marks
from sf_server.training.metrics import MetricsLog
from sf_server.training.reporting import Reporter, Step
from sf_server.training.room import RETRY_S
from sf_server.training.saving import Saver
from sf_server.training.schedule import (
    Position,
    falling_part,
    learning_rate_factor,
    window_is_ready,
    window_size,
)
from sf_server.training.surroundings import Surroundings
from sf_server.training.validation import Score, score_samples
from sf_server.training.window import described, rest_of_window, train_seqs, weighted, window_samples

__all__ = ["Ending", "Surroundings", "Trainer"]

POLL_S: Final = 0.2


class Ending(enum.Enum):
    """How a call of `Trainer.run` ended."""

    DONE = "done"
    STOPPED = "stopped"


class Trainer:
    """Trains a learner on a store until every sample has been seen `epochs` times.

    Attributes:
        progress: where training stands.
        last_score: of the held-out samples, with the weights that the learner has at the end; None without any.
        published: the best epoch, where its weights were chosen at the end; None for the last one's.
    """

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
        self._metrics = metrics
        self._around = around
        self._together = around.together or Alone(around.wait)
        self._feed = around.feed or Feed(store, learner.back_end, around.train_device)
        self._saver = Saver(learner, checkpoints, around=around, every_s=settings.checkpoint_every_s)
        self._reporter = Reporter(settings, store, metrics=metrics, around=around)
        self._finite = FiniteGuard()
        self._marks = Marks()
        self._waiting_since_s: float | None = None
        self.progress = Progress()
        self.last_score: Score | None = None
        self.published: BestScore | None = None

    def restore(self) -> bool:
        """Go on from the newest checkpoint; False when there is none."""
        restored = self._saver.restore()
        if restored is None:
            return False
        self.progress, self._marks = restored
        self._metrics.rewind(after_step=self.progress.step, after_epoch=self.progress.validated)
        return True

    def run(self) -> Ending:
        """Train to the end, or until stopped; either way a checkpoint holds the result, where there was room for one.

        Raises:
            DataError: the devices finished without a training sample.
            TrainingFailed: steps or weights are not finite, or memory ran out.
        """
        while not self._around.stopped() and not (self._is_complete() and not self._together.others_train()):
            if self._is_complete():
                self._pause()
            elif self._validation_is_due():
                self._validate_epoch()
            elif self.progress.position.window_is_open:
                self._train_window()
            elif self._epoch_is_over():
                self._end_epoch()
            else:
                self._open_window_or_wait()
        is_saved = self._saver.save_or_wait(self.progress, self._marks)
        self._metrics.flush()
        if not (is_saved and self._is_complete()):
            return Ending.STOPPED
        return Ending.DONE if self._choose_published() else Ending.STOPPED

    def _is_complete(self) -> bool:
        return self.progress.position.epoch > self._settings.epochs and not self._validation_is_due()

    def _open_window_or_wait(self) -> None:
        """Choose the next window; while its samples have not arrived, wait a moment."""
        self._around.tidy()
        position, now_s = self.progress.position, self._around.clock()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        # Asked before the samples are listed: a device is finished only after its last sample is stored.
        complete = self.progress.stream_end > 0 or self._data_is_complete()
        wanted, waited_s = self._window_size(), now_s - self._waiting_since_s
        infos = self._store.sample_infos(role=Role.TRAIN, after_seq=position.after_seq, limit=wanted)
        if not infos and self.progress.stream_end:
            raise _nothing_left(self.progress)
        deadline_s = self._settings.step_deadline
        if window_is_ready(len(infos), wanted=wanted, complete=complete, waited_s=waited_s, deadline_s=deadline_s):
            self._move(position.open_window(self.progress.stream_end or infos[-1].seq))
            self._waiting_since_s = None
        else:
            self._reporter.waiting(samples=len(infos), wanted=wanted, waited_s=waited_s)
            self._pause()

    def _pause(self) -> None:
        """Wait a moment; a step that other nodes make meanwhile is made here too."""
        if self._together.wait(POLL_S, self._rate_factor(), is_done=self._is_complete()):
            self.progress = msgspec.structs.replace(self.progress, step=self.progress.step + 1)
            self._save_if_due()

    def _save_if_due(self) -> None:
        if self._together.save_is_due(self._saver.is_due()):
            self._saver.save(self.progress, self._marks)

    def _save_between_steps(self) -> None:
        """Nodes save after the same step only, so where there are several, all do after the next one."""
        if self._together.nodes == 1:
            self._saver.save(self.progress, self._marks)
        else:
            self._together.save_is_due(True)

    def _train_window(self) -> None:
        """Train on the rest of the open window; stops between batches when asked to."""
        attempt = Attempt(f"before step {self.progress.step + 1}")
        with memory_by_name(self._settings, attempt):
            planned = self._planned_window()
            if planned is None:
                return
            batches, weights = planned
            for batch in self._feed.batches(batches):
                if self._around.stopped():
                    return
                attempt.what = f"in step {self.progress.step + 1}, on a batch of {described(batch)}"
                result = self._train_batch(weighted(batch, weights))
                self._finite.look_at(result, saved_step=self._saver.saved_step)
                self._save_if_due()
        self._move(self.progress.position.window_done())

    def _planned_window(self) -> tuple[Sequence[list[int]], WindowWeights] | None:
        """What is left of the window, prepared; None when stopped before. The list of its samples is not kept: it is long."""
        position = self.progress.position
        samples = window_samples(self._store, position, limit=self._window_size())
        batches, said = rest_of_window(samples, self._settings, position, self._marks)
        if said is not None:
            self._around.say(said)
        return (batches, WindowWeights(samples, self._settings.balance)) if self._prepared(samples) else None

    def _window_size(self) -> int | None:
        return window_size(
            self._settings.window_samples, epoch_is_known=self.progress.stream_end > 0, pool=self._settings.pool
        )

    def _prepared(self, samples: Sequence[SampleInfo]) -> bool:
        """Prepare samples, once there is room for what that writes; False when stopped before."""
        while not self._around.stopped():
            try:
                self._around.prepare(samples)
            except DiskFull as problem:
                self._around.say(f"{problem.one_line()} Training waits; tried again every {RETRY_S:g} s")
                self._around.wait(RETRY_S)
            else:
                return True
        return False

    def _train_batch(self, batch: Fed) -> StepResult:
        before = self.progress
        began_s = self._around.clock()
        factor = self._rate_factor()
        result = self._learner.step(batch.tensors, rate_factor=factor)
        self._mark(batch.seqs)
        later = before.position.epoch > 1
        self.progress = msgspec.structs.replace(
            before,
            step=before.step + 1,
            position=before.position.batch_done(),
            samples_trained=before.samples_trained + len(batch.seqs),
            later_done=before.later_done + (len(batch.seqs) if later else 0),
            skipped_steps=before.skipped_steps + result.was_skipped,
            tokens=before.tokens + batch.tensors.tokens,
        )
        step = Step(batch=batch, result=result, rate_factor=factor, seconds=self._around.clock() - began_s)
        self._reporter.step(self.progress, step)
        return result

    def _rate_factor(self) -> float:
        progress = self.progress
        falling = falling_part(
            done=progress.samples_trained,
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
        if not progress.samples_trained and self._together.nodes == 1:
            raise DataError(
                "the devices have finished, and none of them sent a training sample",
                cure="check the devices' --data and --role, and their reports of skipped rows",
            )
        if not progress.stream_end:
            progress = msgspec.structs.replace(
                progress, stream_end=progress.position.after_seq, samples=progress.samples_trained
            )
        self._check_marks(progress)
        self.progress = msgspec.structs.replace(progress, position=progress.position.next_epoch())
        self._marks = Marks()
        self._save_between_steps()
        if not self._validation_is_due():
            self._say_epoch_done(None)

    def _validation_is_due(self) -> bool:
        """After an epoch, from the checkpoint that was saved before; so also after being killed in between."""
        position = self.progress.position
        is_between_epochs = position == Position(epoch=position.epoch)
        return self._settings.validate and is_between_epochs and self.progress.validated < position.epoch - 1

    def _validate_epoch(self) -> None:
        epoch = self.progress.position.epoch - 1
        score = self.validate()
        if self._around.stopped():
            return
        if score is not None and not self._keep_if_best(score, epoch):
            return
        self.last_score = score
        self.progress = msgspec.structs.replace(self.progress, validated=epoch)
        if score is not None:
            entry = {"kind": "validation", "epoch": epoch, "step": self.progress.step}
            self._metrics.write({**entry, **score.as_dict()})
            self._save_between_steps()
        self._say_epoch_done(score)

    def _keep_if_best(self, score: Score, epoch: int) -> bool:
        reached = BestScore(
            epoch=epoch,
            step=self.progress.step,
            samples=score.samples,
            loss=score.whole.loss,
            accuracy=score.whole.accuracy,
        )
        is_needed = self._settings.publish == "best"
        return self._saver.keep_if_best(self.progress, self._marks, reached, is_needed=is_needed)

    def _say_epoch_done(self, score: Score | None) -> None:
        progress = self.progress
        said = "" if score is None else f"; held-out samples: {score.one_line()}"
        self._around.say(
            f"epoch {progress.position.epoch - 1} of {self._settings.epochs} done after {progress.step} steps{said}"
        )

    def validate(self) -> Score | None:
        """Score on the samples that the devices held out; None when there are none. Stopped, it is of no use."""
        infos = self._store.sample_infos(role=Role.VALIDATION)
        if not infos or not self._prepared(infos):
            return None
        with memory_by_name(self._settings, Attempt(f"while the {len(infos)} held-out samples were scored")):
            return score_samples(
                self._learner.back_end,
                self._around.source or self._store,
                infos,
                device=self._around.train_device,
                max_tokens=self._settings.batch_tokens,
                stopped=self._around.stopped,
            )

    def _choose_published(self) -> bool:
        """The learner keeps the weights of the last epoch, or gets those of the best one; False when stopped in between."""
        if self._settings.publish == "best":
            self.published = self._saver.take_best()
            if self.published is None:
                self._around.say("--publish best: no samples were held out, so the last epoch is published")
            else:
                self.last_score = None
                self._around.say(
                    f"the weights of epoch {self.published.epoch} did best on the held-out samples "
                    f"(loss {self.published.loss:.4f}) and are published"
                )
        if self.last_score is None and self._settings.validate:
            self.last_score = self.validate()
            return not self._around.stopped()
        return True

    def _data_is_complete(self) -> bool:
        counts = self._store.counts()
        if self._settings.expect_devices is not None:
            return counts.devices_settled >= self._settings.expect_devices
        return counts.train_samples_arrived >= (self._settings.expect_samples or 0)

    def _mark(self, seqs: Sequence[int]) -> None:
        twice = self._marks.add(seqs)
        if twice is not None:
            raise _miscounted(f"sample {twice} was trained twice in epoch {self.progress.position.epoch}")

    def _check_marks(self, progress: Progress) -> None:
        """Every sample that the store still has was trained on in this epoch; none was twice, see `_mark`."""
        left = next(
            (seq for seq in train_seqs(self._store, upto_seq=progress.stream_end) if seq not in self._marks), None
        )
        if left is not None:
            raise _miscounted(f"sample {left} was not trained on in epoch {progress.position.epoch}")

    def _move(self, position: Position) -> None:
        self.progress = msgspec.structs.replace(self.progress, position=position)


def _miscounted(what: str) -> TrainingFailed:
    return TrainingFailed(
        what, cure="please report this with the run's metrics.jsonl; the store and the last checkpoint are intact"
    )


def _nothing_left(progress: Progress) -> DataError:
    return DataError(
        f"all {progress.samples} training samples were removed from the store; epoch {progress.position.epoch} has none left",
        cure="start a new run: what was learned from them is in the last checkpoint",
    )
