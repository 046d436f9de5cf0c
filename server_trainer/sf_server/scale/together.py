"""What the training loop must know of other nodes. A process that trains alone, or leads the only node, knows of none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Together(Protocol):
    """How the loop of one node goes along with those of others."""

    @property
    def nodes(self) -> int:
        """How many there are."""
        ...

    def wait(self, seconds: float, rate_factor: float, *, is_done: bool) -> bool:
        """Wait a moment, or take part in a step that others make meanwhile.

        Args:
            rate_factor: part of the peak learning rate, as this node sees it.
            is_done: all samples of this node were trained on as often as they should be.

        Returns:
            True when a step was made: without samples of this node, but its weights have changed.
        """
        ...

    def others_train(self) -> bool:
        """True until all nodes have said that they are done."""
        ...

    def save_is_due(self, wish: bool) -> bool:
        """Whether to save now: all nodes save after the same step, the one after which one of them wished to."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """The only node."""

    pause: Callable[[float], object]
    nodes: int = 1

    def wait(self, seconds: float, rate_factor: float, *, is_done: bool) -> bool:
        """Nothing but a pause."""
        del rate_factor, is_done
        self.pause(seconds)
        return False

    def others_train(self) -> bool:
        """There are none."""
        return False

    def save_is_due(self, wish: bool) -> bool:
        """As wished."""
        return wish
