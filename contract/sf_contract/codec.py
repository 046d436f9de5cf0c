"""Activation codec: how hidden states at the cut are written on the wire and in the stores.

Rows are packed: one row per real token, padding is never encoded. The front-end graph produces these encodings itself;
this NumPy version is the reference both ends are tested against, and the decoder for everything without PyTorch.

`int8` follows symmetric group quantization with a group of 64 channels:
    scale[t, g] = max(|x[t, 64 g : 64 g + 64]|) / 127        (1 where the group is all zero)
    q[t, c]     = clip(round_half_even(x[t, c] / scale[t, c // 64]), -127, 127)
The last group is shorter when the hidden size is not a multiple of 64.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FloatRows = npt.NDArray[np.float32]

GROUP_CHANNELS: Final = 64
INT8_PEAK: Final = 127


class WireCodec(enum.StrEnum):
    """Encoding of activation rows."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


_ROW_DTYPES: Final[dict[WireCodec, np.dtype[np.generic]]] = {
    WireCodec.FP32: np.dtype("<f4"),
    WireCodec.FP16: np.dtype("<f2"),
    WireCodec.INT8: np.dtype("i1"),
}
SCALE_DTYPE: Final = np.dtype("<f4")
_LARGEST_SCALE: Final = np.finfo(np.float32).max / np.float32(128)
"""Larger scales, times a level of an int8, leave the range of float32."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows:
    """Packed activation rows in one codec.

    Attributes:
        codec: the encoding.
        rows: `[tokens, hidden]` in the codec's dtype.
        scales: `[tokens, groups]` float32; `groups` is 0 for codecs without scales.
    """

    codec: WireCodec
    rows: npt.NDArray[np.generic]
    scales: FloatRows

    @property
    def tokens(self) -> int:
        """Number of rows."""
        return int(self.rows.shape[0])

    @property
    def hidden(self) -> int:
        """Channels per row."""
        return int(self.rows.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of rows and scales together."""
        return int(self.rows.nbytes + self.scales.nbytes)

    def is_finite(self) -> bool:
        """True when the rows decode to finite numbers only."""
        if self.codec is WireCodec.INT8:
            return bool((np.abs(self.scales) <= _LARGEST_SCALE).all())
        return bool(np.isfinite(self.rows.astype(np.float32, copy=False)).all())

    def part(self, start: int, stop: int) -> EncodedRows:
        """Rows `start` to `stop` (exclusive), without copying."""
        return EncodedRows(codec=self.codec, rows=self.rows[start:stop], scales=self.scales[start:stop])


def row_dtype(codec: WireCodec) -> np.dtype[np.generic]:
    """Little-endian dtype of the rows."""
    return _ROW_DTYPES[codec]


def scale_groups(codec: WireCodec, hidden: int) -> int:
    """Scales per row."""
    return -(-hidden // GROUP_CHANNELS) if codec is WireCodec.INT8 else 0


def bytes_per_token(codec: WireCodec, hidden: int) -> int:
    """Bytes one row takes on the wire, scales included."""
    return row_dtype(codec).itemsize * hidden + SCALE_DTYPE.itemsize * scale_groups(codec, hidden)


def encode_rows(activations: FloatRows, codec: WireCodec) -> EncodedRows:
    """Encode float32 activations `[tokens, hidden]`."""
    tokens, hidden = activations.shape
    if codec is not WireCodec.INT8:
        rows = np.ascontiguousarray(activations, dtype=row_dtype(codec))
        return EncodedRows(codec=codec, rows=rows, scales=np.zeros((tokens, 0), dtype=np.float32))
    groups = scale_groups(codec, hidden)
    padded = np.zeros((tokens, groups * GROUP_CHANNELS), dtype=np.float32)
    padded[:, :hidden] = activations
    grouped = padded.reshape(tokens, groups, GROUP_CHANNELS)
    peak = np.abs(grouped).max(axis=2)
    scales = np.where(peak == 0, np.float32(1), peak / np.float32(INT8_PEAK)).astype(np.float32)
    levels = np.clip(np.rint(grouped / scales[:, :, None]), -INT8_PEAK, INT8_PEAK)
    rows = levels.reshape(tokens, groups * GROUP_CHANNELS)[:, :hidden].astype(np.int8)
    return EncodedRows(codec=codec, rows=np.ascontiguousarray(rows), scales=scales)


def decode_rows(encoded: EncodedRows) -> FloatRows:
    """Inverse of `encode_rows` up to rounding: float32 `[tokens, hidden]`."""
    rows = encoded.rows.astype(np.float32)
    if encoded.codec is not WireCodec.INT8:
        return rows
    per_channel = np.repeat(encoded.scales, GROUP_CHANNELS, axis=1)[:, : encoded.hidden]
    return np.asarray(rows * per_channel, dtype=np.float32)


def relative_row_errors(measured: FloatRows, reference: FloatRows) -> FloatRows:
    """Euclidean error of each row over the norm of its reference row: `[tokens]`."""
    norms = np.linalg.norm(reference, axis=1)
    return np.asarray(np.linalg.norm(measured - reference, axis=1) / np.maximum(norms, 1e-12), dtype=np.float32)
