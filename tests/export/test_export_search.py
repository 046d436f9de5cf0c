"""The search for schemes, with errors that are given instead of measured."""

from __future__ import annotations

from collections.abc import Mapping

from sf_export.search import search_schemes

LADDER = ("cheap", "better", "exact")


class _Costs:
    """Errors that add up: each kind costs something on each rung."""

    def __init__(self, costs: Mapping[str, Mapping[str, float]]) -> None:
        self.costs = costs
        self.asked: list[Mapping[str, str]] = []

    def __call__(self, choices: Mapping[str, str]) -> float:
        self.asked.append(choices)
        return sum(self.costs[kind][scheme] for kind, scheme in choices.items())


def test_nothing_is_raised_when_the_lowest_rung_is_good_enough() -> None:
    costs = _Costs({"a": {"cheap": 0.01}, "b": {"cheap": 0.01}})
    found = search_schemes(["a", "b"], LADDER, target=0.03, measure=costs)
    assert found.choices == {"a": "cheap", "b": "cheap"}
    assert len(costs.asked) == 1


def test_the_kind_that_gains_most_is_raised_first_and_the_others_stay_cheap() -> None:
    costs = _Costs(
        {
            "a": {"cheap": 0.02, "better": 0.01, "exact": 0.0},
            "b": {"cheap": 0.20, "better": 0.01, "exact": 0.0},
        }
    )
    found = search_schemes(["a", "b"], LADDER, target=0.04, measure=costs)
    assert found.choices == {"a": "cheap", "b": "better"}
    assert abs(found.error - 0.03) < 1e-9


def test_the_next_rung_is_opened_only_when_the_one_before_is_not_enough() -> None:
    costs = _Costs(
        {
            "a": {"cheap": 0.02, "better": 0.01, "exact": 0.0},
            "b": {"cheap": 0.20, "better": 0.10, "exact": 0.0},
        }
    )
    found = search_schemes(["a", "b"], LADDER, target=0.04, measure=costs)
    assert found.choices == {"a": "better", "b": "exact"}


def test_a_rung_that_makes_a_kind_worse_is_not_taken() -> None:
    costs = _Costs(
        {
            "a": {"cheap": 0.05, "better": 0.50, "exact": 0.0},
            "b": {"cheap": 0.05, "better": 0.04, "exact": 0.0},
        }
    )
    found = search_schemes(["a", "b"], LADDER, target=0.05, measure=costs)
    assert found.choices == {"a": "exact", "b": "better"}


def test_a_target_out_of_reach_gives_the_best_there_is() -> None:
    costs = _Costs({kind: {"cheap": 0.3, "better": 0.2, "exact": 0.1} for kind in "ab"})
    found = search_schemes(["a", "b"], LADDER, target=0.0, measure=costs)
    assert found.choices == {"a": "exact", "b": "exact"}
    assert abs(found.error - 0.2) < 1e-9


def test_the_number_of_measurements_grows_with_the_kinds_and_not_with_their_square() -> None:
    kinds = [f"kind{index}" for index in range(10)]
    costs = _Costs({kind: {"cheap": 0.3, "better": 0.2, "exact": 0.1} for kind in kinds})
    search_schemes(kinds, LADDER, target=0.0, measure=costs)
    assert len(costs.asked) <= 1 + 2 * 2 * len(kinds)
