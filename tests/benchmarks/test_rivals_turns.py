"""Taking turns and the statistics of a comparison."""

from __future__ import annotations

import pytest

from sf_bench.rivals.turns import plan_turns, ratios_to, spread_of, tokens_per_s

NAMES = ["ours", "theirs", "another"]


def test_every_round_gives_everyone_exactly_one_turn():
    rounds = plan_turns(NAMES, 20)
    assert len(rounds) == 20
    assert all(sorted(order) == sorted(NAMES) for order in rounds)


def test_the_order_changes_between_rounds_but_not_between_runs():
    rounds = plan_turns(NAMES, 20, seed=3)
    assert len({tuple(order) for order in rounds}) > 1
    assert rounds == plan_turns(NAMES, 20, seed=3)


def test_the_spread_is_the_median_with_its_quartiles():
    spread = spread_of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)


def test_one_round_has_no_spread():
    spread = spread_of([7.0])
    assert (spread.low, spread.median, spread.high) == (7.0, 7.0, 7.0)


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="no values"):
        spread_of([])


def test_one_slow_sequence_does_not_change_a_rounds_speed():
    assert tokens_per_s([0.1, 0.1, 9.0], tokens=64) == pytest.approx(640)


def test_ratios_are_taken_inside_a_round_so_that_drift_cancels():
    """The machine is half as fast in the second round; the ratio must not notice."""
    assert ratios_to([100.0, 50.0], [250.0, 125.0]) == pytest.approx([2.5, 2.5])
