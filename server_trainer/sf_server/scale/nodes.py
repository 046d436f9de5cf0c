"""The loop of one node among several: when it has no samples, it takes part in the steps of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sf_server.scale.rank_learner import RankLearner, Wishes
from sf_server.scale.together import Together
from sf_server.settings import TrainSettings
from sf_server.training.checkpoints import Progress

NO_SAMPLES: Final = 1e-6
"""Weight of a node that has none: it has a say only while no node has any."""


class Nodes(Together):
    """What the leader of a node knows of the others, from the last step that all made.

    Args:
        learner: makes the steps; asked to carry this node's wishes from now on.
        stop_asked: True once this node was told to stop.
        pause: waits some seconds, or less when told to stop.
        weight: training samples of this node, as far as they are known.
    """

    def __init__(
        self,
        learner: RankLearner,
        *,
        nodes: int,
        stop_asked: Callable[[], bool],
        pause: Callable[[float], object],
        weight: Callable[[], float],
    ) -> None:
        self._learner = learner
        self._nodes = nodes
        self._stop_asked = stop_asked
        self._pause = pause
        self._weight = weight
        self._save_wished = False
        self._is_done = False
        learner.ask_with(self._wishes)

    @property
    def nodes(self) -> int:
        """How many there are."""
        return self._nodes

    def stopped(self) -> bool:
        """True once all nodes know that one was told to stop: they leave after the same step."""
        return self._learner.agreed.stops > 0

    def wait(self, seconds: float, rate_factor: float, *, is_done: bool) -> bool:
        """Take part in the next step without samples; when nobody had any, wait a moment."""
        self._is_done = is_done
        if self._learner.join(rate_factor=rate_factor):
            return True
        if self.others_train():
            self._pause(seconds)
        return False

    def others_train(self) -> bool:
        """True until all nodes have said in one step that they are done."""
        return self._learner.agreed.is_done < self._nodes

    def save_is_due(self, wish: bool) -> bool:
        """True after a step to which some node came with the wish to save; a wish goes into the next step."""
        is_due = self._learner.agreed.saves > 0
        self._save_wished = wish and not is_due
        return is_due

    def _wishes(self) -> Wishes:
        return Wishes(weight=self._weight(), stop=self._stop_asked(), save=self._save_wished, is_done=self._is_done)


def known_samples(progress: Progress, settings: TrainSettings) -> float:
    """Training samples of a node, as far as they are known; what its view of the learning rate counts for."""
    known = max(settings.expect_samples or 0, progress.samples or progress.samples_trained)
    return float(known) or NO_SAMPLES
