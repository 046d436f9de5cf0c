"""Shares, percentiles and slopes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def jain_index(shares: Sequence[float]) -> float:
    """Jain's index of fairness, `(sum x)^2 / (n sum x^2)`: 1 when all shares are equal, 1/n when one has everything.

    Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and Discrimination", DEC-TR-301, 1984. Where nobody has
    anything, all have the same, and the index is 1.

    Raises:
        ValueError: there are no shares, or one is negative.
    """
    if not shares or min(shares) < 0:
        raise ValueError("an index of fairness needs shares, none of them negative")
    # Relative to the largest, so that squares of bytes stay in range.
    largest = max(shares)
    if largest == 0:
        return 1.0
    relative = np.asarray(shares, dtype=np.float64) / largest
    return float(relative.sum() ** 2 / (len(shares) * np.square(relative).sum()))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least so many percent of all do not exceed; None when there are none."""
    if not values:
        return None
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent, method="inverted_cdf"))


def slope(at: Sequence[float], values: Sequence[float]) -> float | None:
    """Change of `values` per unit of `at`, of the straight line with the least squared error.

    None when `at` has fewer than two different values.

    Raises:
        ValueError: the two differ in length.
    """
    if len(at) != len(values):
        raise ValueError(f"{len(at)} places and {len(values)} values")
    if len(set(at)) < 2:
        return None
    x = np.asarray(at, dtype=np.float64) - np.mean(at)
    return float(x @ (np.asarray(values, dtype=np.float64) - np.mean(values)) / (x @ x))
