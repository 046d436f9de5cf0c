"""Activation codec: how hidden states at the cut are written on the wire and in the stores.

Rows are packed: one row per real token, padding is never encoded. The front-end graph produces these encodings itself;
this NumPy version is the reference both ends are tested against, and the decoder for everything without PyTorch.

`int8` follows symmetric group quantization with a group of 64 channels:
    scale[t, g] = max(|x[t, 64 g : 64 g + 64]|) / 127        (1 where the group is all zero)
    q[t, c]     = clip(round_half_even(x[t, c] / scale[t, c // 64]), -127, 127)
The last group is shorter when the hidden size is not a multiple of 64.

`int4` needs what calibration learned about the rows of a bundle; its arithmetic is in `sf_contract.int4`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sf_contract.int4 import Int4Parameters, decode_int4, encode_int4, layout_of

FloatRows = npt.NDArray[np.float32]

GROUP_CHANNELS: Final = 64
INT8_PEAK: Final = 127


class WireCodec(enum.StrEnum):
    """Encoding of activation rows."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


_ROW_DTYPES: Final[dict[WireCodec, np.dtype[np.generic]]] = {
    WireCodec.FP32: np.dtype("<f4"),
    WireCodec.FP16: np.dtype("<f2"),
    WireCodec.INT8: np.dtype("i1"),
    WireCodec.INT4: np.dtype("u1"),
}
_LARGEST_SCALE: Final = np.finfo(np.float32).max / np.float32(128)
"""Larger scales, times a level of an int8, leave the range of float32."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows:
    """Packed activation rows in one codec.

    Attributes:
        codec: the encoding.
        rows: `[tokens, row_columns]` in the codec's dtype; one column per channel, for int4 one per byte.
        scales: `[tokens, groups]` float32, for int4 float16; `groups` is 0 for codecs without scales.
        int4: what decoding int4 needs; None for other codecs, and where rows only pass through.
    """

    codec: WireCodec
    rows: npt.NDArray[np.generic]
    scales: npt.NDArray[np.generic]
    int4: Int4Parameters | None = None

    @property
    def tokens(self) -> int:
        """Number of rows."""
        return int(self.rows.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of rows and scales together."""
        return int(self.rows.nbytes + self.scales.nbytes)

    def is_finite(self) -> bool:
        """True when the rows decode to finite numbers only."""
        match self.codec:
            case WireCodec.FP32 | WireCodec.FP16:
                return bool(np.isfinite(self.rows.astype(np.float32, copy=False)).all())
            case WireCodec.INT8:
                return bool((np.abs(self.scales.astype(np.float32, copy=False)) <= _LARGEST_SCALE).all())
            case WireCodec.INT4:
                return bool(np.isfinite(self.scales.astype(np.float32)).all())

    def part(self, start: int, stop: int) -> EncodedRows:
        """Rows `start` to `stop` (exclusive), without copying."""
        return replace(self, rows=self.rows[start:stop], scales=self.scales[start:stop])


def row_dtype(codec: WireCodec) -> np.dtype[np.generic]:
    """Little-endian dtype of the rows."""
    return _ROW_DTYPES[codec]


def row_columns(codec: WireCodec, hidden: int) -> int:
    """Values of `row_dtype` per row."""
    return layout_of(hidden).row_bytes if codec is WireCodec.INT4 else hidden


def scale_dtype(codec: WireCodec) -> np.dtype[np.generic]:
    """Little-endian dtype of the scales."""
    return np.dtype("<f2") if codec is WireCodec.INT4 else np.dtype("<f4")


def has_scales(codec: WireCodec) -> bool:
    """True for codecs that send scales beside the rows."""
    return codec in {WireCodec.INT8, WireCodec.INT4}


def scale_groups(codec: WireCodec, hidden: int) -> int:
    """Scales per row."""
    match codec:
        case WireCodec.FP32 | WireCodec.FP16:
            return 0
        case WireCodec.INT8:
            return -(-hidden // GROUP_CHANNELS)
        case WireCodec.INT4:
            return layout_of(hidden).groups


def row_bytes(codec: WireCodec, hidden: int) -> int:
    """Bytes one row takes on the wire, without its scales."""
    return row_dtype(codec).itemsize * row_columns(codec, hidden)


def bytes_per_token(codec: WireCodec, hidden: int) -> int:
    """Bytes one row takes on the wire, scales included."""
    return row_bytes(codec, hidden) + scale_dtype(codec).itemsize * scale_groups(codec, hidden)


def encode_rows(activations: FloatRows, codec: WireCodec, int4: Int4Parameters | None = None) -> EncodedRows:
    """Encode float32 activations `[tokens, hidden]`; `int4` is needed for that codec only."""
    match codec:
        case WireCodec.FP32 | WireCodec.FP16:
            rows = np.ascontiguousarray(activations, dtype=row_dtype(codec))
            return EncodedRows(codec=codec, rows=rows, scales=np.zeros((len(rows), 0), dtype=np.float32))
        case WireCodec.INT8:
            return _encode_int8(activations)
        case WireCodec.INT4:
            parameters = needed_parameters(int4)
            packed, scales = encode_int4(activations, parameters)
            return EncodedRows(codec=codec, rows=packed, scales=scales, int4=parameters)


def decode_rows(encoded: EncodedRows) -> FloatRows:
    """Inverse of `encode_rows` up to rounding: float32 `[tokens, hidden]`.

    Raises:
        ValueError: the rows are int4 and came without the bundle's parameters.
    """
    match encoded.codec:
        case WireCodec.FP32 | WireCodec.FP16:
            return encoded.rows.astype(np.float32)
        case WireCodec.INT8:
            rows, scales = encoded.rows.astype(np.float32), encoded.scales.astype(np.float32, copy=False)
            per_channel = np.repeat(scales, GROUP_CHANNELS, axis=1)[:, : rows.shape[1]]
            return np.asarray(rows * per_channel, dtype=np.float32)
        case WireCodec.INT4:
            packed, scales16 = encoded.rows.astype(np.uint8, copy=False), encoded.scales.astype(np.float16, copy=False)
            return decode_int4(packed, scales16, needed_parameters(encoded.int4))


def needed_parameters(int4: Int4Parameters | None) -> Int4Parameters:
    """The parameters, where the codec is int4.

    Raises:
        ValueError: there are none.
    """
    if int4 is None:
        raise ValueError("int4 rows need the parameters of their bundle")
    return int4


def _encode_int8(activations: FloatRows) -> EncodedRows:
    tokens, hidden = activations.shape
    groups = scale_groups(WireCodec.INT8, hidden)
    padded = np.zeros((tokens, groups * GROUP_CHANNELS), dtype=np.float32)
    padded[:, :hidden] = activations
    grouped = padded.reshape(tokens, groups, GROUP_CHANNELS)
    peak = np.abs(grouped).max(axis=2)
    scales = np.where(peak == 0, np.float32(1), peak / np.float32(INT8_PEAK)).astype(np.float32)
    levels = np.clip(np.rint(grouped / scales[:, :, None]), -INT8_PEAK, INT8_PEAK)
    rows = levels.reshape(tokens, groups * GROUP_CHANNELS)[:, :hidden].astype(np.int8)
    return EncodedRows(codec=WireCodec.INT8, rows=np.ascontiguousarray(rows), scales=scales)


def relative_row_errors(measured: FloatRows, reference: FloatRows) -> FloatRows:
    """Euclidean error of each row over the norm of its reference row: `[tokens]`."""
    norms = np.linalg.norm(reference, axis=1)
    return np.asarray(np.linalg.norm(measured - reference, axis=1) / np.maximum(norms, 1e-12), dtype=np.float32)
