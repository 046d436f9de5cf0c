"""Curves that stay small however long a run is."""

from __future__ import annotations

from typing import Final

from sf_server.seeing.state import CurvePoint

MAX_POINTS: Final = 400
"""Even, as points are joined in pairs."""


class LossCurve:
    """Losses of steps as at most `max_points` points, each the mean of equally many steps.

    When there are too many points, neighbours are joined in pairs and later points hold twice as many steps. So adding is cheap
    and the whole run is seen at any time.
    """

    def __init__(self, *, max_points: int = MAX_POINTS) -> None:
        self._max_points = max_points
        self._steps_per_point = 1
        self._done: list[CurvePoint] = []
        self._open: CurvePoint | None = None
        self._open_steps = 0

    def add(self, *, step: int, epoch: int, loss: float) -> None:
        """One more step, later than all before."""
        former = self._open.loss * self._open_steps if self._open else 0.0
        self._open_steps += 1
        self._open = CurvePoint(step=step, epoch=epoch, loss=(former + loss) / self._open_steps)
        if self._open_steps == self._steps_per_point:
            self._done.append(self._open)
            self._open, self._open_steps = None, 0
            if len(self._done) == self._max_points:
                self._join_pairs()

    def points(self) -> tuple[CurvePoint, ...]:
        """The curve; the last point may still hold fewer steps than the others."""
        return tuple(self._done) if self._open is None else (*self._done, self._open)

    def _join_pairs(self) -> None:
        pairs = zip(self._done[::2], self._done[1::2], strict=True)
        self._done = [
            CurvePoint(step=right.step, epoch=right.epoch, loss=(left.loss + right.loss) / 2) for left, right in pairs
        ]
        self._steps_per_point *= 2
