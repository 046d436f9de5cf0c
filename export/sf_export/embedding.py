"""Token embeddings with few bits: the table is most of a small model's bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sf_contract.codec import INT8_PEAK
from sf_export.rounding import hadamard, largest_rotation
from sf_export.settings import EmbeddingBits
from sf_model.front import FrontModel

_INT4_LEVELS: Final = 8
_CLIP_STEPS: Final = 13
_SMALLEST_CLIP: Final = 0.4
_ROWS_AT_ONCE: Final = 8192

_RoundRows = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Int8Embedding(nn.Module):
    """A token embedding with int8 entries and one fp32 scale per token.

    Scaling that the original module applies to its output is part of the table.
    """

    table: torch.Tensor
    scales: torch.Tensor

    def __init__(self, embedding: nn.Module, vocabulary: int) -> None:
        super().__init__()
        table, scales = _in_parts(_int8, embedding, vocabulary)
        self.register_buffer("table", table)
        self.register_buffer("scales", scales)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings `[batch, tokens, hidden]` of token ids `[batch, tokens]`."""
        levels = functional.embedding(input_ids, self.table).float()
        return levels * functional.embedding(input_ids, self.scales)


class Int4Embedding(nn.Module):
    """A token embedding with 4-bit entries, two to a byte, and one fp32 scale per token.

    Rows are rotated by a Hadamard matrix in blocks before they are rounded, and rotated back when they are read: massive
    channels would make the other levels of a row coarse. Each row's scale is the one of several that leaves the smallest
    squared error. The first half of a row's channels lies in the low four bits, the second half in the high ones.
    """

    table: torch.Tensor
    scales: torch.Tensor
    rotation: torch.Tensor

    def __init__(self, embedding: nn.Module, vocabulary: int) -> None:
        super().__init__()
        self.hidden = _rows(embedding, 0, 1).shape[1]
        self.block = largest_rotation(self.hidden) or 1
        self.register_buffer("rotation", torch.from_numpy(hadamard(self.block)))
        table, scales = _in_parts(self._rounded, embedding, vocabulary)
        self.register_buffer("table", table)
        self.register_buffer("scales", scales)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings `[batch, tokens, hidden]` of token ids `[batch, tokens]`."""
        packed = functional.embedding(input_ids, self.table).float()
        high = torch.floor(packed / 16)
        levels = torch.cat([packed - 16 * high, high], dim=-1)[..., : self.hidden] - _INT4_LEVELS
        return self._rotated(levels) * functional.embedding(input_ids, self.scales)

    def _rounded(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels, scales = _best_levels(self._rotated(rows))
        return _packed(levels), scales

    def _rotated(self, rows: torch.Tensor) -> torch.Tensor:
        """The Hadamard matrix is its own inverse."""
        blocks = rows.reshape(*rows.shape[:-1], -1, self.block)
        return torch.matmul(blocks, self.rotation).reshape(rows.shape)


def quantize_embedding(front: FrontModel, vocabulary: int, bits: EmbeddingBits) -> None:
    """Replace the token embedding in place by one with few bits; learned positions stay as they are."""
    kind = Int4Embedding if bits is EmbeddingBits.INT4 else Int8Embedding
    front.base.set_input_embeddings(kind(front.base.get_input_embeddings(), vocabulary))


def _in_parts(round_rows: _RoundRows, embedding: nn.Module, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rounded table and its scales; the fp32 rows are never all in memory."""
    starts = range(0, vocabulary, _ROWS_AT_ONCE)
    parts = [round_rows(_rows(embedding, start, min(start + _ROWS_AT_ONCE, vocabulary))) for start in starts]
    tables, scales = zip(*parts, strict=True)
    return torch.cat(tables), torch.cat(scales)


@torch.no_grad()
def _rows(embedding: nn.Module, start: int, end: int) -> torch.Tensor:
    rows: torch.Tensor = embedding(torch.arange(start, end))
    return rows.float()


def _int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    peaks = rows.abs().amax(dim=1, keepdim=True)
    scales = torch.where(peaks > 0, peaks / INT8_PEAK, torch.ones_like(peaks))
    return torch.round(rows / scales).to(torch.int8), scales


def _best_levels(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels from -8 to 7 `[vocabulary, hidden]` and scales `[vocabulary, 1]`."""
    peaks = rows.abs().amax(dim=1, keepdim=True)
    peaks = torch.where(peaks > 0, peaks, torch.ones_like(peaks))
    scales, smallest = peaks, torch.full_like(peaks, float("inf"))
    for clip in np.linspace(_SMALLEST_CLIP, 1, _CLIP_STEPS):
        tried = peaks * float(clip) / (_INT4_LEVELS - 1)
        error = (_levels(rows, tried) * tried - rows).square().sum(dim=1, keepdim=True)
        scales = torch.where(error < smallest, tried, scales)
        smallest = torch.minimum(error, smallest)
    return _levels(rows, scales), scales


def _levels(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return torch.round(rows / scales).clamp(-_INT4_LEVELS, _INT4_LEVELS - 1)


def _packed(levels: torch.Tensor) -> torch.Tensor:
    half = -(-levels.shape[1] // 2)
    shifted = functional.pad(levels + _INT4_LEVELS, (0, 2 * half - levels.shape[1]))
    return (shifted[:, :half] + 16 * shifted[:, half:]).to(torch.uint8)
