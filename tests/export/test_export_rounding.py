"""Rounding of weights, and the rotation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sf_export.rounding import (
    WeightRange,
    hadamard,
    largest_rotation,
    rotate_inputs,
    round_weight,
    smoothing_scales,
)

FINITE = st.floats(-100, 100, width=32)


@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=FINITE))
def test_neighbours_along_the_input_never_add_up_to_more_than_16_bits_hold(weight: np.ndarray) -> None:
    levels = round_weight(weight, WeightRange.PAIRS).levels.astype(np.int64)
    assert np.abs(levels).max() <= 127
    even = len(levels) - len(levels) % 2
    assert 255 * np.abs(levels[0:even:2] + levels[1:even:2]).max(initial=0) < 2**15


@given(
    arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=FINITE), st.sampled_from(WeightRange)
)
def test_no_weight_moves_by_more_than_half_a_level(weight: np.ndarray, levels: WeightRange) -> None:
    found = round_weight(weight, levels)
    assert (np.abs(found.levels * found.scales - weight) <= found.scales / 2 * 1.0001).all()


def test_the_safe_levels_of_a_normal_weight_cost_less_than_half_a_bit() -> None:
    weight = np.random.default_rng(0).normal(size=(576, 64)).astype(np.float32)
    ratio = round_weight(weight, WeightRange.PAIRS).scales / round_weight(weight, WeightRange.FULL).scales
    assert 1 < ratio.mean() < 2**0.5


def test_a_channel_of_zeros_has_scale_one() -> None:
    found = round_weight(np.zeros((4, 1), dtype=np.float32), WeightRange.PAIRS)
    assert (found.scales, found.levels.tolist()) == (1, [[0]] * 4)


@pytest.mark.parametrize(("channels", "size"), [(576, 64), (1536, 64), (96, 32), (72, 8), (36, None), (7, None)])
def test_the_largest_power_of_two_that_divides_the_channels_is_rotated(channels: int, size: int | None) -> None:
    assert largest_rotation(channels) == size


@pytest.mark.parametrize("size", [8, 64])
def test_the_rotation_is_its_own_inverse(size: int) -> None:
    np.testing.assert_allclose(hadamard(size) @ hadamard(size), np.eye(size), atol=1e-6)


def test_a_rotated_weight_undoes_the_rotation_of_its_input() -> None:
    random = np.random.default_rng(1)
    x, weight = random.normal(size=(5, 24)).astype(np.float32), random.normal(size=(24, 3)).astype(np.float32)
    turned = (x.reshape(5, 3, 8) @ hadamard(8)).reshape(5, 24)
    np.testing.assert_allclose(turned @ rotate_inputs(weight, 8), x @ weight, rtol=1e-4, atol=1e-5)


def test_smoothing_moves_three_quarters_of_a_channels_peak_into_the_weight() -> None:
    activations, weights = np.array([100.0, 1.0], np.float32), np.array([1.0, 1.0], np.float32)
    np.testing.assert_allclose(smoothing_scales(activations, weights), [100**0.75, 1.0], rtol=1e-6)
