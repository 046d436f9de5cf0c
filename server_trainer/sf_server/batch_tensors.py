"""Stored samples as padded tensors: the PyTorch side of the activation codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sf_contract.activations import NO_TARGET
from sf_contract.codec import GROUP_CHANNELS, EncodedRows
from sf_model.back import BackEnd, PadSide
from sf_server.stored import StoredSample


@dataclass(frozen=True, slots=True, eq=False)
class BatchTensors:
    """One batch on the training device.

    Attributes:
        rows: float32 `[batch, tokens, hidden]`.
        mask: int64 `[batch, tokens]`, 1 for real rows.
        labels: int64 `[batch]` class indices, or int64 `[batch, tokens]` next tokens with `NO_TARGET` where none.
        tokens: real rows in the batch.
    """

    rows: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    tokens: int


def decode_to_tensor(encoded: EncodedRows) -> torch.Tensor:
    """float32 `[tokens, hidden]`; equal to `sf_contract.codec.decode_rows` to the last bit."""
    rows = torch.from_numpy(np.array(encoded.rows)).float()
    if not encoded.scales.shape[1]:
        return rows
    scales = torch.from_numpy(np.array(encoded.scales))
    return rows * scales.repeat_interleave(GROUP_CHANNELS, dim=1)[:, : encoded.hidden]


def make_batch(samples: Sequence[StoredSample], back_end: BackEnd, device: torch.device) -> BatchTensors:
    """Decode, pad on the side the back end needs, and move to the device."""
    rows, mask = back_end.pad([decode_to_tensor(sample.rows) for sample in samples])
    return BatchTensors(
        rows=rows.to(device),
        mask=mask.to(device),
        labels=_labels(samples, back_end.pad_side).to(device),
        tokens=int(mask.sum()),
    )


def _labels(samples: Sequence[StoredSample], side: PadSide) -> torch.Tensor:
    if samples[0].targets is None:
        return torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    targets = [torch.from_numpy(np.array(sample.targets, dtype=np.int64)) for sample in samples]
    return torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=NO_TARGET, padding_side=side.value)
