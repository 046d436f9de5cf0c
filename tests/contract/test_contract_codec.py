"""The activation codec."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_contract.codec import (
    EncodedRows,
    WireCodec,
    bytes_per_token,
    decode_rows,
    encode_rows,
    relative_row_errors,
    row_columns,
    scale_groups,
)
from support.wire_rows import int4_for

INT8_ERROR = 0.015
"""Rounding to 127 levels per group of 64 Gaussian channels: peak about 2.8 sigma, step peak / 127, error step / sqrt(12)."""


def gaussian_rows(tokens: int, hidden: int, *, outlier: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(5).normal(size=(tokens, hidden)).astype(np.float32)
    if outlier:
        rows[:, 507 % hidden] *= outlier  # one massive channel, as in real models
    return rows


def test_the_bytes_of_encoded_rows_are_these() -> None:
    activations = np.array([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0]], dtype=np.float32)
    int8 = encode_rows(activations, WireCodec.INT8)
    assert int8.rows.tobytes().hex() == "7fc020000000"
    assert int8.scales.tobytes().hex() == "0402013c0000803f"
    assert encode_rows(activations, WireCodec.FP16).rows.tobytes().hex() == "003c00b80034000000000000"
    assert encode_rows(activations, WireCodec.FP32).rows.tobytes().hex() == (
        "0000803f000000bf0000803e" + "00000000" * 3
    )


def test_half_a_step_is_rounded_to_even() -> None:
    activations = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], dtype=np.float32)
    assert encode_rows(activations, WireCodec.INT8).rows.tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize(("hidden", "outlier"), [(64, 0.0), (576, 0.0), (576, 30.0), (768, 30.0), (768, 1000.0)])
def test_int8_rows_have_small_error_also_with_massive_channels(hidden: int, outlier: float) -> None:
    rows = gaussian_rows(50, hidden, outlier=outlier)
    errors = relative_row_errors(decode_rows(encode_rows(rows, WireCodec.INT8)), rows)
    assert errors.mean() <= INT8_ERROR


def test_a_massive_channel_costs_its_own_group_only() -> None:
    rows = gaussian_rows(20, 128, outlier=1000.0)  # channel 507 % 128 = 123, in the second group
    decoded = decode_rows(encode_rows(rows, WireCodec.INT8))
    assert relative_row_errors(decoded[:, :64], rows[:, :64]).mean() <= INT8_ERROR


def test_fp32_is_exact_and_fp16_nearly() -> None:
    rows = gaussian_rows(10, 70)
    assert np.array_equal(decode_rows(encode_rows(rows, WireCodec.FP32)), rows)
    assert relative_row_errors(decode_rows(encode_rows(rows, WireCodec.FP16)), rows).max() < 5e-4


@given(
    tokens=st.integers(0, 5),
    hidden=st.integers(1, 200),
    codec=st.sampled_from(WireCodec),
    exponent=st.integers(-30, 4),
    seed=st.integers(0, 1000),
)
def test_sizes_and_bounds_hold_for_every_shape(
    tokens: int, hidden: int, codec: WireCodec, exponent: int, seed: int
) -> None:
    rows = (np.random.default_rng(seed).uniform(-1, 1, (tokens, hidden)) * 10.0**exponent).astype(np.float32)
    encoded = encode_rows(rows, codec, int4_for(codec, hidden))
    assert encoded.tokens == tokens
    assert encoded.rows.shape[1] == row_columns(codec, hidden)
    assert encoded.nbytes == tokens * bytes_per_token(codec, hidden)
    assert encoded.scales.shape == (tokens, scale_groups(codec, hidden))
    assert encoded.is_finite()
    decoded = decode_rows(encoded)
    assert decoded.shape == rows.shape
    if codec is WireCodec.INT8:
        half_steps = np.repeat(encoded.scales, 64, axis=1)[:, :hidden] * np.float32(0.501)
        assert (np.abs(decoded - rows) <= half_steps).all()


@pytest.mark.parametrize("codec", list(WireCodec))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_rows_that_are_not_finite_are_recognised(codec: WireCodec, value: float) -> None:
    rows = gaussian_rows(3, 70)
    rows[1, 65] = value
    assert not encode_rows(rows, codec, int4_for(codec, 70)).is_finite()


def test_a_part_is_a_view() -> None:
    encoded = encode_rows(gaussian_rows(4, 70), WireCodec.INT8)
    part = encoded.part(1, 3)
    assert part.tokens == 2
    assert np.shares_memory(part.rows, encoded.rows)
    assert np.shares_memory(part.scales, encoded.scales)


def test_a_zero_row_has_no_error() -> None:
    zero = np.zeros((1, 5), dtype=np.float32)
    assert relative_row_errors(zero, zero).tolist() == [0.0]
    assert isinstance(encode_rows(zero, WireCodec.INT8), EncodedRows)
