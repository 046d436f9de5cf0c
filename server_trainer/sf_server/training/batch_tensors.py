"""Stored samples as padded tensors: the PyTorch side of the activation codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sf_contract.activations import NO_TARGET
from sf_contract.codec import GROUP_CHANNELS, EncodedRows, WireCodec, needed_parameters
from sf_contract.int4 import Int4Layout, Int4Parameters
from sf_model.back import PadSide, Segment
from sf_server.store.stored import StoredSample


@dataclass(frozen=True, slots=True, eq=False)
class BatchTensors:
    """One batch on the training device.

    Attributes:
        rows: float32 `[batch, tokens, hidden]`.
        mask: int64 `[batch, tokens]`, 1 for real rows.
        labels: int64 `[batch]` class indices, or int64 `[batch, tokens]` next tokens with `NO_TARGET` where none.
        tokens: real rows in the batch.
        weights: float32 `[batch]`, what the loss of each sample's targets is multiplied by; None: by 1.
    """

    rows: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    tokens: int
    weights: torch.Tensor | None = None


def decode_to_tensor(encoded: EncodedRows) -> torch.Tensor:
    """float32 `[tokens, hidden]`; equal to `sf_contract.codec.decode_rows` to the last bit.

    Raises:
        ValueError: the rows are int4 and came without the bundle's parameters.
    """
    rows, scales = torch.from_numpy(np.array(encoded.rows)), torch.from_numpy(np.array(encoded.scales))
    match encoded.codec:
        case WireCodec.FP32 | WireCodec.FP16:
            return rows.float()
        case WireCodec.INT8:
            return rows.float() * scales.repeat_interleave(GROUP_CHANNELS, dim=1)[:, : rows.shape[1]]
        case WireCodec.INT4:
            return _decode_int4(rows, scales, needed_parameters(encoded.int4))


def make_batch(samples: Sequence[StoredSample], back_end: Segment, device: torch.device) -> BatchTensors:
    """Decode, pad on the side the back end needs, and move to the device."""
    rows, mask = back_end.pad([decode_to_tensor(sample.rows) for sample in samples])
    return BatchTensors(
        rows=rows.to(device),
        mask=mask.to(device),
        labels=_labels(samples, back_end.pad_side).to(device),
        tokens=int(mask.sum()),
    )


def _decode_int4(packed: torch.Tensor, scales: torch.Tensor, parameters: Int4Parameters) -> torch.Tensor:
    layout = parameters.layout
    spread = scales.float()[:, torch.from_numpy(layout.group_of_channel())]
    half = torch.from_numpy(layout.halves())
    levels = _unpacked(packed, layout).float()
    unit, mean = torch.from_numpy(parameters.unit), torch.from_numpy(parameters.mean)
    values = ((levels + 0.5) / half - 1) * spread * unit + mean
    return values[:, torch.from_numpy(parameters.place_of_channel)]


def _unpacked(packed: torch.Tensor, layout: Int4Layout) -> torch.Tensor:
    """Levels uint8 `[tokens, hidden]` in wire order."""
    wide, nibbles, bit_bytes = torch.split(packed, [layout.wide, layout.nibble_bytes, layout.finer // 8], dim=1)
    others = torch.cat([nibbles & 15, nibbles >> 4], dim=1)[:, : layout.hidden - layout.wide]
    bits = (bit_bytes[:, None] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1).reshape(len(packed), layout.finer)
    finer = others[:, : layout.finer] << 1 | bits
    return torch.cat([wide, finer, others[:, layout.finer :]], dim=1)


def _labels(samples: Sequence[StoredSample], side: PadSide) -> torch.Tensor:
    if samples[0].targets is None:
        return torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    targets = [torch.from_numpy(np.array(sample.targets, dtype=np.int64)) for sample in samples]
    return torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=NO_TARGET, padding_side=side.value)
