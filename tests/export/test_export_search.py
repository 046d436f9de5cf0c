"""The choice of schemes, with errors that are given instead of measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_export.search import SAFETY, Option, choose, fastest_within, most_precise

FAST, MIDDLE, PRECISE = Option("fast", 1.0, 9e-4), Option("middle", 2.0, 1e-4), Option("precise", 4.0, 0.0)
LADDER = (FAST, MIDDLE, PRECISE)


def _added(options: Mapping[str, Option[str]]) -> float:
    return math.sqrt(sum(option.squared_error for option in options.values()))


def _schemes(options: Mapping[str, Option[str]]) -> dict[str, str]:
    return {name: option.scheme for name, option in options.items()}


def test_everything_is_fast_when_the_budget_allows_it() -> None:
    found = choose({"a": LADDER, "b": LADDER}, floor=0.0, max_error=0.1, measure=_added)
    assert _schemes(found.options) == {"a": "fast", "b": "fast"}


def test_precision_is_bought_where_it_costs_least_time() -> None:
    large = (Option("fast", 10.0, 9e-4), Option("precise", 40.0, 0.0))
    found = choose({"small": LADDER, "large": large}, floor=0.0, max_error=0.034 / SAFETY, measure=_added)
    assert _schemes(found.options) == {"small": "middle", "large": "fast"}


def test_of_two_equally_fast_schemes_the_more_precise_one_is_taken() -> None:
    found = fastest_within({"a": (Option("plain", 1.0, 4e-4), Option("smoothed", 1.0, 1e-4))}, 1.0)
    assert found["a"].scheme == "smoothed"


def test_a_budget_nothing_reaches_gives_the_most_precise_choice_and_its_error() -> None:
    found = choose({"a": LADDER}, floor=0.05, max_error=0.01, measure=lambda _: 0.05)
    assert _schemes(found.options) == {"a": "precise"}
    assert found.error == 0.05


def test_errors_that_add_up_worse_than_predicted_are_answered_with_a_tighter_budget() -> None:
    found = choose(
        {"a": LADDER, "b": LADDER}, floor=0.0, max_error=0.05 / SAFETY, measure=lambda options: 3 * _added(options)
    )
    assert 3 * _added(found.options) <= 0.05
    assert _schemes(found.options) != {"a": "precise", "b": "precise"}


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=4), min_size=1, max_size=4
    ),
    st.integers(0, 120),
)
def test_whatever_fits_the_budget_is_found_and_is_never_slower_than_the_most_precise_choice(
    table: list[list[tuple[int, int]]], budget: int
) -> None:
    groups = {str(i): [Option(f"{t}/{e}", t, e) for t, e in options] for i, options in enumerate(table)}
    found = fastest_within(groups, budget)
    reachable = any(sum(o.squared_error for o in chosen) <= budget for chosen in product(*groups.values()))
    assert (sum(o.squared_error for o in found.values()) <= budget) == reachable
    if reachable:
        best = min(
            sum(o.time for o in chosen)
            for chosen in product(*groups.values())
            if sum(o.squared_error for o in chosen) <= budget
        )
        assert sum(o.time for o in found.values()) >= best
        assert sum(o.time for o in found.values()) <= sum(max(o.time for o in options) for options in groups.values())


def test_the_most_precise_choice_prefers_the_faster_of_two_equals() -> None:
    assert most_precise({"a": (Option("slow", 2.0, 0.0), Option("quick", 1.0, 0.0))})["a"].scheme == "quick"


@pytest.mark.parametrize("limit", [0.02, 0.04, 0.06])
def test_the_measured_error_of_the_choice_stays_below_the_limit(limit: float) -> None:
    found = choose(
        {"a": LADDER, "b": LADDER, "c": LADDER},
        floor=0.01,
        max_error=limit,
        measure=lambda o: math.hypot(0.01, _added(o)),
    )
    assert found.error <= SAFETY * limit
