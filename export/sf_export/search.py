"""Which scheme each kind of matrix product gets: a search that only asks how large the error is. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

S = TypeVar("S")

SAFETY: Final = 0.8
"""The search stops at this part of the allowed error: it sees only some of the text."""


@dataclass(frozen=True, slots=True)
class SearchResult(Generic[S]):
    """The schemes found and the mean error measured with them."""

    choices: Mapping[str, S]
    error: float


def search_schemes(
    kinds: Sequence[str], ladder: Sequence[S], *, target: float, measure: Callable[[Mapping[str, S]], float]
) -> SearchResult[S]:
    """Start with everything on the lowest rung and raise single kinds until the error is at most `target`.

    One rung after the other is opened. For each, every kind is tried on it alone; then kinds are raised for good in the
    order of what that gained, as long as the error falls.

    Args:
        kinds: names of the kinds.
        ladder: schemes, cheapest first.
        target: mean error to reach.
        measure: mean error with the given scheme per kind.
    """
    best = SearchResult(dict.fromkeys(kinds, ladder[0]), measure(dict.fromkeys(kinds, ladder[0])))
    for rung in ladder[1:]:
        if best.error <= target:
            break
        best = _climb(best, rung, target=target, measure=measure)
    return best


def _climb(
    start: SearchResult[S], rung: S, *, target: float, measure: Callable[[Mapping[str, S]], float]
) -> SearchResult[S]:
    tried = [_with(start, kind, rung, measure) for kind in start.choices]
    order = sorted(zip(tried, start.choices, strict=True), key=lambda pair: pair[0].error)
    best = start
    for alone, kind in order:
        if best.error <= target or alone.error >= start.error:
            break
        raised = alone if best is start else _with(best, kind, rung, measure)
        if raised.error < best.error:
            best = raised
    return best


def _with(result: SearchResult[S], kind: str, rung: S, measure: Callable[[Mapping[str, S]], float]) -> SearchResult[S]:
    choices = {**result.choices, kind: rung}
    return SearchResult(choices, measure(choices))
