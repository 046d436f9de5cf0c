"""The arithmetic of the wire codec `int4`: 4 bits for most channels, more for few, at most 0.55 bytes per channel.

Rows of a language model are far from noise: they share a large common part, and a few channels vary much more than the
others. Calibration rows tell which, and the codec spends its bits accordingly (reverse water-filling, Cover and Thomas,
"Elements of Information Theory", 10.3.3, held to widths that pack well):

    z[t, i] = (x[t, order[i]] - mean[i]) / unit[i]                     channels in wire order, i = 0 .. hidden - 1
    s[t, g] = float16(max |z[t, i]| over the channels i of group g)
    q[t, i] = clip(floor(z[t, i] / s[t, g(i)] * half[i]) + half[i], 0, 2 half[i] - 1)      s taken as 1 where it is 0
    x[t, order[i]] = ((q[t, i] + 0.5) / half[i] - 1) * s[t, g(i)] * unit[i] + mean[i]

In wire order come first the `wide` channels (8 bits, half 128, a group of their own: those with the largest peaks for
their spread, so that a massive value costs nobody else), then by falling spread the `finer` ones (5 bits, half 16) and
the rest (4 bits, half 8) in groups of 96. A row is `uint8`:

    wide bytes | nibbles: the high four bits of q, channels k and k + ceil(n / 2) of the n others in one byte, k below
               | bits: the lowest bit of q of the finer channels, channel k + j finer / 8 is bit j of byte k

All operations are single float32 or float16 operations in this order, so NumPy, PyTorch and ONNX Runtime agree to the
last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from sf_contract.errors import BundleError, ModelError

GROUP_CHANNELS: Final = 96
WIDE_HALF: Final = 128
FINER_HALF: Final = 16
HALF: Final = 8
_CHANNELS_PER_WIDE: Final = 128
_SMALLEST_WITH_WIDE: Final = 192
"""Below, the scale of a group of wide channels would break the budget."""
_BUDGET: Final = (11, 20)
"""Bytes per channel, scales included, as a fraction: 0.55."""
_LARGEST_PARAMETER: Final = 1e30
"""Means and units are at most this large; with scales in float16, decoded rows then stay inside float32."""
_SPREADS_PER_UNIT: Final = 256
"""Typical scales are then near 0.01, and float16 has room for values of 16 million spreads: models have massive ones."""

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Int4Layout:
    """How a row of `hidden` channels is laid out; it follows from `hidden` alone.

    Attributes:
        hidden: channels per row.
        wide: channels with 8 bits.
        finer: channels with 5 bits, a multiple of 8.
        groups: scales per row, the one of the wide channels first.
    """

    hidden: int
    wide: int
    finer: int
    groups: int

    @property
    def nibble_bytes(self) -> int:
        """Bytes that hold the high bits of the channels that are not wide, two in each."""
        return -(-(self.hidden - self.wide) // 2)

    @property
    def row_bytes(self) -> int:
        """Bytes per row, without the scales."""
        return self.wide + self.nibble_bytes + self.finer // 8

    def halves(self) -> _Floats:
        """Half the number of levels of each channel, in wire order: `[hidden]`."""
        halves = np.full(self.hidden, HALF, dtype=np.float32)
        halves[: self.wide] = WIDE_HALF
        halves[self.wide : self.wide + self.finer] = FINER_HALF
        return halves

    def group_of_channel(self) -> npt.NDArray[np.int64]:
        """Index of the scale of each channel, in wire order: `[hidden]`."""
        first = 1 if self.wide else 0
        others = first + np.arange(self.hidden - self.wide, dtype=np.int64) // GROUP_CHANNELS
        return np.concatenate([np.zeros(self.wide, dtype=np.int64), others])


def layout_of(hidden: int) -> Int4Layout:
    """The layout for a hidden size; rows of very few channels take more than 0.55 bytes per channel for their scale."""
    wide = hidden // _CHANNELS_PER_WIDE if hidden >= _SMALLEST_WITH_WIDE else 0
    groups = bool(wide) + -(-(hidden - wide) // GROUP_CHANNELS)
    coarse = Int4Layout(hidden=hidden, wide=wide, finer=0, groups=groups)
    spare = hidden * _BUDGET[0] // _BUDGET[1] - coarse.row_bytes - 2 * groups
    finer = 8 * min(max(spare, 0), (hidden - wide) // 8)
    return Int4Layout(hidden=hidden, wide=wide, finer=finer, groups=groups)


@dataclass(frozen=True, eq=False)
class Int4Parameters:
    """What calibration knows of the rows at a cut; the same on the device (in the graph) and on the server.

    Attributes:
        order: int64 `[hidden]`, the channel at each place of the wire order.
        mean: float32 `[hidden]`, in wire order.
        unit: float32 `[hidden]`, in wire order; a multiple of how much a channel varies.
    """

    order: npt.NDArray[np.int64]
    mean: _Floats
    unit: _Floats

    @cached_property
    def layout(self) -> Int4Layout:
        """The layout of the rows."""
        return layout_of(len(self.order))

    @cached_property
    def place_of_channel(self) -> npt.NDArray[np.int64]:
        """int64 `[hidden]`: the place of each channel in the wire order, the inverse of `order`."""
        return np.argsort(self.order)

    def to_bytes(self) -> bytes:
        """The parameter file of a bundle: little-endian float32 `[3, hidden]`: order, mean, unit."""
        return np.stack([self.order.astype("<f4"), self.mean, self.unit]).astype("<f4").tobytes()


def parameter_bytes(hidden: int) -> int:
    """Bytes of a bundle's parameter file."""
    return 3 * 4 * hidden


def parameters_from_bytes(raw: bytes, *, hidden: int, where: str) -> Int4Parameters:
    """The parameters in a bundle's file.

    Raises:
        BundleError: it has another size, or holds no permutation, no finite means or no positive units.
    """
    if len(raw) != parameter_bytes(hidden):
        raise _damaged(f"{where} is not a file of {parameter_bytes(hidden)} bytes")
    order, mean, unit = np.frombuffer(raw, dtype="<f4").reshape(3, hidden).astype(np.float32)
    if not np.array_equal(np.sort(order), np.arange(hidden, dtype=np.float32)):
        raise _damaged(f"{where} does not name every channel once")
    if not (
        (np.abs(mean) <= _LARGEST_PARAMETER).all()
        and ((unit >= 1 / _LARGEST_PARAMETER) & (unit <= _LARGEST_PARAMETER)).all()
    ):
        raise _damaged(f"{where} holds means or units outside their range")
    return Int4Parameters(order=order.astype(np.int64), mean=mean, unit=unit)


def calibrate(rows: _Floats) -> Int4Parameters:
    """Parameters from the rows `[tokens, hidden]` of a calibration text, at least one.

    Errors count relative to a row's length, so each row weighs one over its squared length (but none more than a row of half
    the median length): neither massive nor empty rows decide alone. The unit of a channel follows the
    geometric mean of its own spread and of the average spread; its own spread alone gives the same mean error on real
    text, but larger worst errors.

    Raises:
        ModelError: a row is not finite.
    """
    values = rows.astype(np.float64)
    if not np.isfinite(values).all():
        raise ModelError("the rows at the cut are not finite", cure="check the base model's weights, or cut it earlier")
    squares = (values**2).sum(axis=1)
    weights = 1 / np.maximum(squares, float(np.median(squares)) / 4 or 1.0)
    weights /= weights.sum()
    mean = weights @ values
    residuals = np.abs(values - mean)
    spread = np.sqrt(weights @ residuals**2)
    average = float(np.sqrt((spread**2).mean())) or 1.0
    spread = np.maximum(spread, average / 64)
    order = _wire_order(spread, peak=residuals.max(axis=0))
    unit = _SPREADS_PER_UNIT * np.sqrt(spread * average)
    return Int4Parameters(order=order, mean=mean[order].astype(np.float32), unit=unit[order].astype(np.float32))


def encode_int4(rows: _Floats, parameters: Int4Parameters) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Encoded rows `[tokens, row_bytes]` and scales `[tokens, groups]` of float32 rows `[tokens, hidden]`."""
    layout = parameters.layout
    half = layout.halves()
    with np.errstate(over="ignore", invalid="ignore"):  # rows that leave the range are recognised by their scales
        values = (rows[:, parameters.order] - parameters.mean) / parameters.unit
        scales = _group_peaks(values, layout)
        divisors = np.where(scales == 0, np.float32(1), scales.astype(np.float32))[:, layout.group_of_channel()]
        levels = np.clip(np.floor(values / divisors * half) + half, 0, 2 * half - 1)
    return _packed(np.nan_to_num(levels).astype(np.uint8), layout), scales


def decode_int4(packed: npt.NDArray[np.uint8], scales: npt.NDArray[np.float16], parameters: Int4Parameters) -> _Floats:
    """Inverse of `encode_int4` up to rounding: float32 `[tokens, hidden]`."""
    layout = parameters.layout
    half = layout.halves()
    levels = _unpacked(packed, layout).astype(np.float32)
    spread = scales.astype(np.float32)[:, layout.group_of_channel()]
    values = ((levels + np.float32(0.5)) / half - np.float32(1)) * spread * parameters.unit + parameters.mean
    return np.asarray(values[:, parameters.place_of_channel], dtype=np.float32)


def _wire_order(spread: npt.NDArray[np.float64], *, peak: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    wide = np.argsort(-peak / spread, kind="stable")[: layout_of(len(spread)).wide]
    by_spread = np.argsort(-spread, kind="stable")
    return np.concatenate([wide, by_spread[~np.isin(by_spread, wide)]]).astype(np.int64)


def _group_peaks(values: _Floats, layout: Int4Layout) -> npt.NDArray[np.float16]:
    tokens, groups = len(values), layout.groups - bool(layout.wide)
    padded = np.zeros((tokens, groups * GROUP_CHANNELS), dtype=np.float32)
    padded[:, : layout.hidden - layout.wide] = np.abs(values[:, layout.wide :])
    peaks = padded.reshape(tokens, groups, GROUP_CHANNELS).max(axis=2)
    if layout.wide:
        peaks = np.concatenate([np.abs(values[:, : layout.wide]).max(axis=1, keepdims=True), peaks], axis=1)
    return np.asarray(peaks, dtype=np.float16)


def _packed(levels: npt.NDArray[np.uint8], layout: Int4Layout) -> npt.NDArray[np.uint8]:
    wide, finer, others = np.split(levels, [layout.wide, layout.wide + layout.finer], axis=1)
    nibbles = np.zeros((len(levels), 2 * layout.nibble_bytes), dtype=np.uint8)
    nibbles[:, : layout.hidden - layout.wide] = np.concatenate([finer >> 1, others], axis=1)
    below, above = np.split(nibbles, 2, axis=1)
    bits = (finer & 1).reshape(len(levels), 8, layout.finer // 8)
    bit_bytes = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    return np.concatenate([wide, below | above << 4, bit_bytes], axis=1)


def _unpacked(packed: npt.NDArray[np.uint8], layout: Int4Layout) -> npt.NDArray[np.uint8]:
    wide, nibbles, bit_bytes = np.split(packed, [layout.wide, layout.wide + layout.nibble_bytes], axis=1)
    levels = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)[:, : layout.hidden - layout.wide]
    bits = np.unpackbits(bit_bytes[:, None], axis=1, bitorder="little").reshape(len(packed), layout.finer)
    finer = levels[:, : layout.finer] << 1 | bits
    return np.concatenate([wide, finer, levels[:, layout.finer :]], axis=1)


def _damaged(what: str) -> BundleError:
    return BundleError(what, cure="export the bundle again and copy the whole folder")
