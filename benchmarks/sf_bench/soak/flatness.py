"""Whether a measured quantity grows: its slope over time with an interval, held against a bound. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

_Z_95: Final = 1.96
SHARE_ALLOWED: Final = 0.02
"""Growth over the watched time that still counts as flat, as a part of the median. What leaks with every sample or step
grows without end, so the longer one watches the smaller a leak is found; 2 % is above what allocators move to and fro."""


class Slope(msgspec.Struct, frozen=True):
    """Change per unit of time: the estimate and the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


class Flatness(msgspec.Struct, frozen=True):
    """One quantity of one process while it was watched.

    Attributes:
        name: such as `trainer: resident memory`.
        unit: of the values.
        median, first, last: values; first and last are means over a tenth of the readings at either end.
        per_hour: slope.
        growth: what the lower end of the slope's interval makes of the watched time.
        allowed: growth up to which it is flat.
    """

    name: str
    unit: str
    median: float
    first: float
    last: float
    per_hour: Slope
    growth: float
    allowed: float

    @property
    def is_flat(self) -> bool:
        """True unless it certainly grew by more than is allowed."""
        return self.growth <= self.allowed


def theil_sen(at: Sequence[float], values: Sequence[float]) -> Slope:
    """The median of the slopes between all pairs, which outliers and jumps hardly move, with its 95 % interval.

    Source: Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968); the interval counts
    pairs with the variance `n (n - 1) (2 n + 5) / 18` of Kendall's S. It assumes independent readings; memory moves in
    steps, so the true interval is wider, which is one reason for the allowance in `flatness_of`.

    Raises:
        ValueError: fewer than three readings, or two at the same time.
    """
    times, measured = np.asarray(at, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(times) < 3 or len(times) != len(measured):
        raise ValueError(f"{len(times)} times and {len(measured)} values; a slope needs at least three of both")
    later, earlier = np.tril_indices(len(times), -1)
    passed = times[later] - times[earlier]
    if (passed <= 0).any():
        raise ValueError("readings must be in the order of their times")
    slopes = np.sort((measured[later] - measured[earlier]) / passed)
    n, pairs = len(times), len(slopes)
    half = _Z_95 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    low = max(0, math.floor(pairs / 2 - half))
    high = min(pairs - 1, math.ceil(pairs / 2 + half))
    return Slope(estimate=float(np.median(slopes)), low=float(slopes[low]), high=float(slopes[high]))


def flatness_of(
    name: str, unit: str, *, at_s: Sequence[float], values: Sequence[float], least_allowed: float
) -> Flatness:
    """Judge one quantity; it may always grow by `least_allowed` over the watched time, whatever its size."""
    slope = theil_sen(at_s, values)
    tenth = max(1, len(values) // 10)
    median = float(np.median(values))
    watched_s = at_s[-1] - at_s[0]
    return Flatness(
        name=name,
        unit=unit,
        median=median,
        first=float(np.mean(values[:tenth])),
        last=float(np.mean(values[-tenth:])),
        per_hour=Slope(estimate=slope.estimate * 3600, low=slope.low * 3600, high=slope.high * 3600),
        growth=slope.low * watched_s,
        allowed=max(least_allowed, SHARE_ALLOWED * median),
    )
