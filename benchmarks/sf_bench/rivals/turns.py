"""Taking turns, and what follows from the times. Pure.

On a machine that others use too, speeds drift. So every round gives each contestant one turn, in an order that changes,
and ratios are taken inside a round.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float


def plan_turns(names: Sequence[str], rounds: int, *, seed: int = 0) -> list[list[str]]:
    """Every name once per round. Each round is shuffled, so that nobody always follows the same neighbour."""
    generator = random.Random(seed)
    return [generator.sample(names, len(names)) for _ in range(rounds)]


def spread_of(values: Sequence[float]) -> Spread:
    """Median and quartiles.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def tokens_per_s(seconds: Sequence[float], *, tokens: int) -> float:
    """Speed in one round: `tokens` over the median time of one sequence."""
    return tokens / statistics.median(seconds)


def ratios_to(baseline: Sequence[float], speeds: Sequence[float]) -> list[float]:
    """Speed against the baseline's in the same round."""
    return [speed / of_baseline for speed, of_baseline in zip(speeds, baseline, strict=True)]
