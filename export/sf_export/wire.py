"""The row codec as part of the front-end graph: a front end whose outputs are wire-ready."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from sf_contract.codec import GROUP_CHANNELS, INT8_PEAK, WireCodec, needed_parameters, scale_groups
from sf_contract.int4 import GROUP_CHANNELS as INT4_GROUP_CHANNELS
from sf_contract.int4 import Int4Parameters
from sf_model.front import FrontModel

Encoded = tuple[torch.Tensor, ...]
"""`rows`, and `scales` where the codec has them."""


class WireFront(nn.Module):
    """A front end that returns packed rows in a wire codec; the arithmetic is that of `sf_contract.codec`.

    Args:
        front: the front end.
        hidden: channels per row.
        codec: the encoding.
        int4: parameters from calibration, for int4 only.

    Raises:
        ValueError: the codec is int4, and there are no parameters.
    """

    def __init__(self, front: FrontModel, *, hidden: int, codec: WireCodec, int4: Int4Parameters | None = None) -> None:
        super().__init__()
        self.front = front
        self.hidden = hidden
        self.encoder = _encoder(codec, hidden, int4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, row_index: torch.Tensor) -> Encoded:
        """Encoded rows of the real tokens.

        Args:
            input_ids: int64 `[batch, tokens]`.
            attention_mask: int64 `[batch, tokens]`, 1 for real tokens.
            row_index: int64 `[rows]`, positions of real tokens in the flattened batch.

        Returns:
            `rows` `[rows, columns]` and, for int8 and int4, `scales` `[rows, groups]`.
        """
        rows = self.front(input_ids, attention_mask).reshape(-1, self.hidden).index_select(0, row_index)
        encoded: Encoded = self.encoder(rows)
        return encoded


class FloatEncoder(nn.Module):
    """Rows as they are, in fp32 or fp16."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, rows: torch.Tensor) -> Encoded:
        """Encode float32 `[rows, hidden]`."""
        return (rows.to(self.dtype),)


class Int8Encoder(nn.Module):
    """Symmetric int8 with one scale per group of 64 channels."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.groups = scale_groups(WireCodec.INT8, hidden)

    def forward(self, rows: torch.Tensor) -> Encoded:
        """Encode float32 `[rows, hidden]`."""
        padded = functional.pad(rows, (0, self.groups * GROUP_CHANNELS - self.hidden))
        grouped = padded.reshape(-1, self.groups, GROUP_CHANNELS)
        peaks = grouped.abs().amax(dim=2)
        scales = torch.where(peaks == 0, torch.ones_like(peaks), peaks / INT8_PEAK) + _not_finite(grouped, dim=2)
        levels = torch.clamp(torch.round(grouped / scales.unsqueeze(2)), -INT8_PEAK, INT8_PEAK)
        return levels.reshape(-1, self.groups * GROUP_CHANNELS)[:, : self.hidden].to(torch.int8), scales


class Int4Encoder(nn.Module):
    """The codec of `sf_contract.int4`.

    It works on `[channels, rows]`, because putting channels in another order is fast in ONNX Runtime when each is one
    piece of memory. Bits are put together in float32, where whole numbers below 256 are exact.
    """

    order: torch.Tensor
    mean: torch.Tensor
    unit: torch.Tensor
    halves: torch.Tensor
    bit_values: torch.Tensor

    def __init__(self, parameters: Int4Parameters) -> None:
        super().__init__()
        self.layout = parameters.layout
        self.register_buffer("order", torch.from_numpy(parameters.order))
        self.register_buffer("mean", torch.from_numpy(parameters.mean)[:, None])
        self.register_buffer("unit", torch.from_numpy(parameters.unit)[:, None])
        self.register_buffer("halves", torch.from_numpy(self.layout.halves())[:, None])
        self.register_buffer("bit_values", 2.0 ** torch.arange(8)[:, None, None])

    def forward(self, rows: torch.Tensor) -> Encoded:
        """Encode float32 `[rows, hidden]`."""
        values = (rows.t().index_select(0, self.order) - self.mean) / self.unit
        scaled, scales = _scaled(values[self.layout.wide :], INT4_GROUP_CHANNELS)
        if self.layout.wide:
            wide, wide_scales = _scaled(values[: self.layout.wide], self.layout.wide)
            scaled, scales = torch.cat([wide, scaled]), torch.cat([wide_scales, scales])
        levels = torch.floor(scaled * self.halves) + self.halves
        levels = torch.minimum(levels.clamp(min=0), 2 * self.halves - 1)
        return self._packed(levels).to(torch.uint8).t(), scales.t()

    def _packed(self, levels: torch.Tensor) -> torch.Tensor:
        """Bytes `[row_bytes, rows]`, still as float32."""
        wide = levels[: self.layout.wide]
        finer = levels[self.layout.wide : self.layout.wide + self.layout.finer]
        others = levels[self.layout.wide + self.layout.finer :]
        above = torch.floor(finer / 2)
        nibbles = torch.cat([above, others])
        middle = self.layout.nibble_bytes
        upper = functional.pad(nibbles[middle:], (0, 0, 0, 2 * middle - nibbles.shape[0]))
        parts = [wide, nibbles[:middle] + 16 * upper]
        if self.layout.finer:
            bits = (finer - 2 * above).reshape(8, self.layout.finer // 8, -1)
            parts.append((bits * self.bit_values).sum(dim=0))
        return torch.cat(parts)


def _scaled(values: torch.Tensor, group_channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values `[channels, rows]` over the peak of their group, and the peaks float16 `[groups, rows]`."""
    channels = values.shape[0]
    groups = -(-channels // group_channels)
    padded = functional.pad(values, (0, 0, 0, groups * group_channels - channels))
    grouped = padded.reshape(groups, group_channels, -1)
    scales = (grouped.abs().amax(dim=1) + _not_finite(grouped, dim=1)).to(torch.float16)
    peaks = scales.float()
    divisors = torch.where(peaks == 0, torch.ones_like(peaks), peaks)
    return (grouped / divisors[:, None]).reshape(groups * group_channels, -1)[:channels], scales


def _encoder(codec: WireCodec, hidden: int, int4: Int4Parameters | None) -> nn.Module:
    match codec:
        case WireCodec.FP32:
            return FloatEncoder(torch.float32)
        case WireCodec.FP16:
            return FloatEncoder(torch.float16)
        case WireCodec.INT8:
            return Int8Encoder(hidden)
        case WireCodec.INT4:
            return Int4Encoder(needed_parameters(int4))


def _not_finite(grouped: torch.Tensor, *, dim: int) -> torch.Tensor:
    """NaN for groups, along `dim`, that hold a number that is not finite, else zero.

    ONNX Runtime's maximum skips a NaN among numbers; a sum does not.
    """
    return 0 * grouped.sum(dim=dim)
