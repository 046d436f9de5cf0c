"""The wire codec int4: its bytes, its sizes, its errors, and the parameters it needs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_contract.bundle import MANIFEST_FILE, describe_file, open_bundle
from sf_contract.codec import EncodedRows, WireCodec, bytes_per_token, decode_rows, encode_rows, relative_row_errors
from sf_contract.errors import BundleError, ModelError
from sf_contract.int4 import Int4Parameters, calibrate, layout_of, parameter_bytes, parameters_from_bytes
from sf_contract.manifest import Manifest, encode_manifest
from support.wire_rows import model_like_rows

replace = msgspec.structs.replace

INT4_ERROR = 0.065
"""On `model_like_rows` of 576 channels, whose common part is as long as the rest. The bits alone give 9 % on noise; half
the length that is known before, and more bits where more happens, bring it to 6 %."""


def small_parameters() -> Int4Parameters:
    return Int4Parameters(
        order=np.array([2, 0, 1, 3, 4, 5, 6, 7, 8]),
        mean=np.arange(9, dtype=np.float32) / 2,
        unit=np.array([1, 2, 1, 1, 0.5, 1, 1, 1, 4], dtype=np.float32),
    )


def test_the_bytes_of_encoded_rows_are_these() -> None:
    """In wire order, row 0 less its mean over its unit is 3, 1/4, -3, -1, 12, -7/2, -3, -3/2, 1/2; the peak is 12."""
    rows = np.array([[1, -2, 3, 0.5, 8, -1, 0, 2, 6], [0.5, 1, 0, 1.5, 2, 2.5, 3, 3.5, 4]], dtype=np.float32)
    encoded = encode_rows(rows, WireCodec.INT4, small_parameters())
    assert encoded.rows.tobytes().hex() == "5a6876870f" + "8888888808"
    assert encoded.scales.tobytes().hex() == "004a" + "0000"
    assert decode_rows(encoded).tolist() == [
        [2.0, -1.25, 3.75, 0.75, 7.625, -1.25, 0.75, 2.75, 7.0],
        [0.5, 1, 0, 1.5, 2, 2.5, 3, 3.5, 4],
    ]


def test_the_bytes_of_rows_with_all_three_widths_are_these() -> None:
    """Values that every processor computes alike: whole numbers over powers of two."""
    hidden = 192
    order = np.arange(hidden)[::-1].copy()
    parameters = Int4Parameters(
        order=order,
        mean=(np.arange(hidden) % 7 / 4).astype(np.float32),
        unit=(2.0 ** (np.arange(hidden) % 3)).astype(np.float32),
    )
    rows = ((np.arange(8 * hidden) * 7919 % 1021 - 510) / 64).astype(np.float32).reshape(8, hidden)
    encoded = encode_rows(rows, WireCodec.INT4, parameters)
    digest = hashlib.sha256(encoded.rows.tobytes() + encoded.scales.tobytes()).hexdigest()
    assert digest == "f3ef4b80faca9107933c5caf5da7add3732052620f294c93d0d2464f49fd4063"
    assert (
        hashlib.sha256(decode_rows(encoded).tobytes()).hexdigest()
        == "1ecda056e19ba9878525285d235c88daf11645dee64cad5726bd6530142e83c1"
    )


@pytest.mark.parametrize("hidden", [9, 72, 97, 200, 576])
def test_rows_can_be_read_by_the_description_alone(hidden: int) -> None:
    """A reader that goes bit by bit, as docs/wire-protocol.md tells it."""
    parameters = calibrate(model_like_rows(64, hidden, seed=1))
    encoded = encode_rows(model_like_rows(3, hidden), WireCodec.INT4, parameters)
    for row, scales, decoded in zip(encoded.rows.tolist(), encoded.scales, decode_rows(encoded), strict=True):
        for place, channel in enumerate(parameters.order.tolist()):
            assert decoded[channel] == _read(row, scales, place, parameters)


def _read(row: list[int], scales: np.ndarray, place: int, parameters: Int4Parameters) -> np.float32:
    layout = layout_of(len(parameters.order))
    other = place - layout.wide
    half_way = (layout.hidden - layout.wide + 1) // 2
    if other < 0:
        half, level, group = 128, row[place], 0
    else:
        nibble = row[layout.wide + other % half_way] >> (4 if other >= half_way else 0) & 15
        half, level, group = 8, nibble, other // 96 + bool(layout.wide)
        if other < layout.finer:
            eighth = layout.finer // 8
            bit = row[layout.wide + half_way + other % eighth] >> other // eighth & 1
            half, level = 16, 2 * nibble + bit
    value = np.float32((level + 0.5) / half - 1) * np.float32(scales[group])
    return value * parameters.unit[place] + parameters.mean[place]


def test_a_row_takes_at_most_055_bytes_per_channel() -> None:
    for hidden in (*range(1, 1200), 1536, 2048, 3072, 4096, 5120, 8192, 65_536):
        layout = layout_of(hidden)
        assert layout.row_bytes + 2 * layout.groups == bytes_per_token(WireCodec.INT4, hidden)
        assert layout.finer % 8 == 0
        assert layout.wide + layout.finer <= hidden
        if hidden >= 50:  # one scale of two bytes weighs more than a twentieth of a shorter row
            assert bytes_per_token(WireCodec.INT4, hidden) <= 0.55 * hidden


def test_rows_like_a_models_have_small_error_and_massive_ones_no_larger() -> None:
    parameters = calibrate(model_like_rows(512, 576, seed=1))
    rows = model_like_rows(320, 576, seed=2)
    errors = relative_row_errors(decode_rows(encode_rows(rows, WireCodec.INT4, parameters)), rows)
    assert errors.mean() <= INT4_ERROR
    assert errors[::16].max() <= INT4_ERROR  # the rows with a massive channel, which has a scale of its own
    assert 507 in parameters.order[: parameters.layout.wide]


def test_calibration_is_what_makes_the_error_small() -> None:
    rows = model_like_rows(320, 576, seed=2)
    plain = Int4Parameters(
        order=np.arange(576), mean=np.zeros(576, dtype=np.float32), unit=np.ones(576, dtype=np.float32)
    )
    errors = relative_row_errors(decode_rows(encode_rows(rows, WireCodec.INT4, plain)), rows)
    assert errors.mean() > 1.5 * INT4_ERROR


def test_one_row_is_enough_to_calibrate() -> None:
    parameters = calibrate(model_like_rows(2, 70)[1:])
    rows = model_like_rows(20, 70, seed=3)
    errors = relative_row_errors(decode_rows(encode_rows(rows, WireCodec.INT4, parameters)), rows)
    assert errors.max() < 0.5


@pytest.mark.parametrize("strange", [1000.0, 1e-9])
def test_neither_a_massive_nor_an_empty_row_decides_the_parameters(strange: float) -> None:
    rows = model_like_rows(200, 96)
    usual, disturbed = calibrate(rows), calibrate(np.concatenate([rows, strange * rows[1:2]]))
    for name in ("mean", "unit"):
        before, after = (getattr(found, name)[found.place_of_channel] for found in (usual, disturbed))
        np.testing.assert_allclose(after, before, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("rows", [np.zeros((3, 70)), np.full((3, 70), 1e-30), np.ones((3, 70))])
def test_rows_that_never_vary_come_back(rows: np.ndarray) -> None:
    rows = rows.astype(np.float32)
    decoded = decode_rows(encode_rows(rows, WireCodec.INT4, calibrate(rows)))
    np.testing.assert_allclose(decoded, rows, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_calibration_rows_that_are_not_finite_are_refused(value: float) -> None:
    rows = model_like_rows(5, 8)
    rows[2, 3] = value
    with pytest.raises(ModelError, match="not finite"):
        calibrate(rows)


def test_values_beyond_the_range_of_a_scale_are_recognised() -> None:
    parameters = small_parameters()
    rows = np.zeros((2, 9), dtype=np.float32)
    rows[1, 0] = 3e5  # over a unit of 2, more than the 65,504 of float16
    encoded = encode_rows(rows, WireCodec.INT4, parameters)
    assert encoded.part(0, 1).is_finite()
    assert not encoded.part(1, 2).is_finite()


def test_rows_without_parameters_pass_through_but_cannot_be_decoded() -> None:
    encoded = encode_rows(model_like_rows(2, 9), WireCodec.INT4, small_parameters())
    bare = EncodedRows(codec=encoded.codec, rows=encoded.rows, scales=encoded.scales)
    assert bare.is_finite()
    with pytest.raises(ValueError, match="parameters"):
        decode_rows(bare)


def test_parameters_come_back_from_their_file() -> None:
    parameters = calibrate(model_like_rows(64, 200))
    raw = parameters.to_bytes()
    assert len(raw) == parameter_bytes(200)
    found = parameters_from_bytes(raw, hidden=200, where="wire.f32")
    for name in ("order", "mean", "unit"):
        assert np.array_equal(getattr(found, name), getattr(parameters, name))


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ((0, 0), 1.0, "every channel once"),
        ((0, 0), 9.0, "every channel once"),
        ((0, 0), 0.5, "every channel once"),
        ((0, 0), np.nan, "every channel once"),
        ((1, 4), np.nan, "outside their range"),
        ((1, 4), np.inf, "outside their range"),
        ((2, 4), 0.0, "outside their range"),
        ((2, 4), -1.0, "outside their range"),
        ((2, 4), np.nan, "outside their range"),
        ((2, 4), 1e31, "outside their range"),
        ((2, 4), 1e-31, "outside their range"),
    ],
)
def test_a_parameter_file_that_cannot_be_meant_is_refused(place: tuple[int, int], value: float, says: str) -> None:
    content = np.frombuffer(small_parameters().to_bytes(), dtype="<f4").reshape(3, 9).copy()
    content[place] = value
    with pytest.raises(BundleError, match=says):
        parameters_from_bytes(content.tobytes(), hidden=9, where="wire.f32")


@pytest.mark.parametrize("nbytes", [0, 107, 109, 12 * 72])
def test_a_parameter_file_of_another_size_is_refused(nbytes: int) -> None:
    with pytest.raises(BundleError, match="not a file of 108 bytes"):
        parameters_from_bytes(bytes(nbytes), hidden=9, where="wire.f32")


@given(raw=st.binary(min_size=36, max_size=36))
def test_any_parameters_that_are_accepted_decode_to_finite_numbers(raw: bytes) -> None:
    try:
        parameters = parameters_from_bytes(np.arange(3, dtype="<f4").tobytes() + raw[12:], hidden=3, where="f")
    except BundleError:
        return
    scales = np.full((1, 1), np.finfo(np.float16).max, dtype=np.float16)
    for level in (0x00, 0xFF):
        rows = np.full((1, 2), level, dtype=np.uint8)
        extreme = EncodedRows(codec=WireCodec.INT4, rows=rows, scales=scales, int4=parameters)
        assert np.isfinite(decode_rows(extreme)).all()


@pytest.fixture
def int4_bundle(bundle_folder: Path, manifest: Manifest) -> Callable[..., Path]:
    """Makes the bundle folder one with int4 rows and their parameters; its manifest can be changed before it is written."""
    (bundle_folder / "wire.f32").write_bytes(calibrate(model_like_rows(32, 8)).to_bytes())
    files = (*manifest.files, describe_file(bundle_folder / "wire.f32"))
    proper = replace(manifest, wire_codec=WireCodec.INT4, wire_file="wire.f32", files=files)

    def write(**changes: object) -> Path:
        (bundle_folder / MANIFEST_FILE).write_bytes(encode_manifest(replace(proper, **changes)))
        return bundle_folder

    return write


def test_a_bundle_brings_its_parameters(int4_bundle: Callable[..., Path]) -> None:
    found = open_bundle(int4_bundle()).int4_parameters()
    assert found is not None
    assert found.to_bytes() == calibrate(model_like_rows(32, 8)).to_bytes()


def test_a_bundle_with_other_rows_has_none(bundle_folder: Path) -> None:
    assert open_bundle(bundle_folder).int4_parameters() is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"wire_file": None}, "parameters for its wire codec"),
        ({"wire_codec": WireCodec.INT8}, "parameters for its wire codec"),
        ({"wire_file": "other.f32"}, "does not list"),
        ({"wire_file": "tokenizer.json"}, "two roles"),
        ({"wire_file": "../wire.f32"}, "wire_file"),
    ],
)
def test_a_bundle_whose_parameters_contradict_its_codec_is_refused(
    int4_bundle: Callable[..., Path], changes: dict[str, object], says: str
) -> None:
    with pytest.raises(BundleError, match=says):
        open_bundle(int4_bundle(**changes))


def test_parameters_for_another_hidden_size_are_refused(int4_bundle: Callable[..., Path], manifest: Manifest) -> None:
    folder = int4_bundle()
    (folder / "wire.f32").write_bytes(calibrate(model_like_rows(32, 9)).to_bytes())
    files = (*manifest.files, describe_file(folder / "wire.f32"))
    with pytest.raises(BundleError, match="another size"):
        open_bundle(int4_bundle(files=files))
