"""Saving: what a checkpoint is made of, when one is due, and what happens when there is no room for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from sf_contract.errors import DiskFull
from sf_server.training.checkpoints import BestScore, Checkpoints, Progress, Snapshot
from sf_server.training.failures import check_finite
from sf_server.training.learner import Learner
from sf_server.training.marks import Marks
from sf_server.training.room import RETRY_S
from sf_server.training.surroundings import Surroundings

CPU: Final = "cpu"
CUDA: Final = "cuda"


class Saver:
    """Saves the state of a learner, and puts it back.

    Args:
        every_s: seconds between checkpoints; where there was no room, `RETRY_S` at least.
    """

    def __init__(self, learner: Learner, checkpoints: Checkpoints, *, around: Surroundings, every_s: float) -> None:
        self._learner = learner
        self._checkpoints = checkpoints
        self._around = around
        self._every_s = every_s
        self._tried_s = around.clock()
        self._is_full = False
        self._saved: Progress | None = None

    @property
    def saved_step(self) -> int:
        """Step of the newest checkpoint; 0 when there is none."""
        return 0 if self._saved is None else self._saved.step

    def restore(self) -> tuple[Progress, Marks] | None:
        """Go on from the newest checkpoint; None when there is none.

        Raises:
            StoreError: there are checkpoints, and none can be read.
        """
        snapshot = self._checkpoints.load_newest()
        if snapshot is None:
            return None
        self._learner.restore(snapshot.parameters, snapshot.optimizer)
        set_random_states(snapshot.random, self._around.train_device)
        self._saved = snapshot.progress
        return snapshot.progress, Marks(snapshot.marks.numpy())

    def is_due(self) -> bool:
        """True when it is time for the next checkpoint."""
        wait_s = max(self._every_s, RETRY_S) if self._is_full else self._every_s
        return self._around.clock() - self._tried_s >= wait_s

    def save(self, progress: Progress, marks: Marks) -> bool:
        """Save, unless that is what was saved last; False when there is no room: the checkpoint before stays.

        Raises:
            TrainingFailed: a weight is not finite.
        """
        if progress == self._saved:
            return True
        self._tried_s = self._around.clock()
        if not self._fits(lambda: self._checkpoints.save(self._snapshot(progress, marks))):
            return False
        self._saved = progress
        return True

    def save_or_wait(self, progress: Progress, marks: Marks) -> bool:
        """Save, and try again until there is room; False when stopped before."""
        while not self.save(progress, marks):
            if self._around.stopped():
                return False
            self._around.wait(RETRY_S)
        return True

    def keep_if_best(self, progress: Progress, marks: Marks, score: BestScore, *, is_needed: bool) -> bool:
        """Keep this state apart if no other one reached as low a loss.

        Without room, one that is needed is waited for, and another one is done without; False when stopped before.
        """
        best = self._checkpoints.best()
        # Written so that a loss that is no number is never the best one.
        if not (score.loss < (float("inf") if best is None else best.loss)):
            return True
        while not self._fits(lambda: self._checkpoints.save_best(self._snapshot(progress, marks), score)):
            if not is_needed or self._around.stopped():
                return not is_needed
            self._around.wait(RETRY_S)
        return True

    def take_best(self) -> BestScore | None:
        """Give the learner the weights of the best checkpoint; None when there is none."""
        score, snapshot = self._checkpoints.best(), self._checkpoints.load_best()
        if score is None or snapshot is None:
            return None
        self._learner.restore(snapshot.parameters, snapshot.optimizer)
        return score

    def _fits(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except DiskFull as problem:
            if not self._is_full:
                kept = f"that of step {self.saved_step} is kept" if self.saved_step else "there is none yet"
                self._around.say(f"{problem.one_line()} Training goes on; {kept}. Tried again every {RETRY_S:g} s")
            self._is_full = True
            return False
        if self._is_full:
            self._around.say("there is room for checkpoints again")
        self._is_full = False
        return True

    def _snapshot(self, progress: Progress, marks: Marks) -> Snapshot:
        parameters, optimizer = self._learner.state()
        check_finite(parameters, saved_step=self.saved_step)
        return Snapshot(
            progress=progress,
            parameters=parameters,
            optimizer=optimizer,
            random=random_states(self._around.train_device),
            marks=torch.from_numpy(marks.bits()),
        )


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """PyTorch's random states that training on this device draws from, uint8."""
    states = {CPU: torch.get_rng_state()}
    if device.type == CUDA:
        states[CUDA] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put them back; a run that goes on on another kind of device draws anew there."""
    torch.set_rng_state(states[CPU])
    if device.type == CUDA and CUDA in states:
        torch.cuda.set_rng_state(states[CUDA], device)
