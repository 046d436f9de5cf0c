"""Paired differences and their intervals, against values that can be looked up or computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sf_bench.quality.statistics import compare, t_interval, t_quantile

# Two-sided 95 % points of Student's distribution as every printed table has them.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize("freedom", PRINTED)
def test_the_t_quantile_is_the_one_in_printed_tables(freedom):
    assert t_quantile(freedom) == pytest.approx(PRINTED[freedom], abs=6e-4)


def test_with_many_values_the_t_quantile_becomes_the_normal_one():
    assert t_quantile(10_000) == pytest.approx(1.96, abs=1e-3)


def test_the_interval_of_known_values_is_the_one_computed_by_hand():
    # mean 2, standard deviation 1, three values: 2 -+ 4.3027 / sqrt(3)
    interval = t_interval(np.array([1.0, 2.0, 3.0]))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), 1e-4)
    assert interval.n == 3


def test_one_value_alone_has_no_interval():
    assert t_interval(np.array([1.0])) is None


def test_a_pair_is_compared_seed_by_seed_and_sample_by_sample():
    arm = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], dtype=bool)
    reference = np.array([[1, 0, 0, 1], [1, 1, 1, 1]], dtype=bool)
    paired = compare(arm, reference)
    assert paired.by_seed == (25.0, -50.0)
    assert paired.mean == -12.5
    assert (paired.only_arm, paired.only_reference) == (1, 2)
    # Averaged over the seeds the four samples differ by 0, 0, -50 and 0 points.
    assert paired.over_samples == t_interval(np.array([0.0, 0.0, -50.0, 0.0]))
    assert paired.over_seeds == t_interval(np.array([25.0, -50.0]))


def test_pairing_narrows_the_interval_of_arms_that_err_on_the_same_samples():
    generator = np.random.default_rng(0)
    reference = generator.random((3, 800)) < 0.85
    alike = reference.copy()
    alike[:, :8] ^= True
    unlike = generator.random((3, 800)) < 0.85
    near, far = compare(alike, reference).over_samples, compare(unlike, reference).over_samples
    assert near is not None
    assert far is not None
    assert near.high - near.low < 0.5 * (far.high - far.low)


def test_the_interval_over_samples_holds_the_true_difference_as_often_as_it_says():
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        reference = generator.random((3, 300)) < 0.8
        flipped = generator.random((3, 300)) < 0.1  # right becomes wrong more often than the reverse: -6 points
        interval = compare(reference ^ flipped, reference).over_samples
        assert interval is not None
        inside += interval.low <= -6.0 <= interval.high
    assert 0.92 <= inside / 400 <= 0.98
