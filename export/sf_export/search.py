"""Which scheme each group of matrix products gets: the fastest choice within an error budget. Pure.

Errors of different groups add up in squares, nearly (they are small and hardly correlated), so each is measured alone and
the choice is a multiple-choice knapsack: minimise the sum of times while the sum of squared errors stays in the budget. It
is solved greedily on each group's frontier, as usual for this problem (Sinha and Zoltners, 1979), then measured as a
whole; if the sum was too optimistic, the budget shrinks and the choice is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

S = TypeVar("S")

SAFETY: Final = 0.95
"""The search stops at this part of the allowed error: it sees only some of the text."""

_MAX_ROUNDS: Final = 8


@dataclass(frozen=True, slots=True)
class Option(Generic[S]):
    """One scheme for one group.

    Attributes:
        scheme: the scheme.
        time: estimated time per token, in any unit that all groups share.
        squared_error: what it adds to the squared error at the cut.
    """

    scheme: S
    time: float
    squared_error: float


@dataclass(frozen=True, slots=True)
class Choice(Generic[S]):
    """An option per group, and the mean error measured with all of them."""

    options: Mapping[str, Option[S]]
    error: float


def choose(
    groups: Mapping[str, Sequence[Option[S]]],
    *,
    floor: float,
    max_error: float,
    measure: Callable[[Mapping[str, Option[S]]], float],
) -> Choice[S]:
    """The fastest choice found whose measured error is safely below `max_error`, else the most precise one tried.

    Args:
        groups: the options of each group.
        floor: error at the cut that no choice avoids (row codec, embedding).
        max_error: mean error to stay below.
        measure: mean error at the cut with the given options.
    """
    target = SAFETY * max_error
    budget = target**2 - floor**2
    best: Choice[S] | None = None
    tried: set[tuple[tuple[str, S], ...]] = set()
    for _ in range(_MAX_ROUNDS):
        options = fastest_within(groups, budget)
        key = tuple((name, option.scheme) for name, option in options.items())
        if key in tried:
            break
        tried.add(key)
        found = Choice(options, measure(options))
        if best is None or found.error < best.error:
            best = found
        if found.error <= target:
            return found
        budget = _tighter(budget, predicted=_sum(options), measured=found.error**2 - floor**2)
    precise = most_precise(groups)
    last = Choice(precise, measure(precise))
    return last if best is None or last.error < best.error else best


def fastest_within(groups: Mapping[str, Sequence[Option[S]]], budget: float) -> dict[str, Option[S]]:
    """The fastest options whose squared errors add up to at most `budget`; the most precise ones if none do."""
    chosen = {
        name: min(options, key=lambda option: (option.time, option.squared_error)) for name, options in groups.items()
    }
    while _sum(chosen) > budget:
        steps = [
            (_gain(chosen[name], option), name, option)
            for name, options in groups.items()
            for option in options
            if option.squared_error < chosen[name].squared_error
        ]
        if not steps:
            break
        _, name, option = max(steps, key=lambda step: step[0])
        chosen[name] = option
    return chosen


def most_precise(groups: Mapping[str, Sequence[Option[S]]]) -> dict[str, Option[S]]:
    """Each group's option with the smallest error."""
    return {
        name: min(options, key=lambda option: (option.squared_error, option.time)) for name, options in groups.items()
    }


def _gain(old: Option[S], new: Option[S]) -> float:
    """Squared error saved per time spent."""
    return (old.squared_error - new.squared_error) / max(new.time - old.time, 1e-12)


def _sum(options: Mapping[str, Option[S]]) -> float:
    return sum(option.squared_error for option in options.values())


def _tighter(budget: float, *, predicted: float, measured: float) -> float:
    """A budget that lowers the prediction by as much as the measurement was above it, and by a little at least."""
    ratio = predicted / measured if measured > 0 else 1.0
    return min(budget, predicted) * min(ratio, 0.95)
