"""The front end in PyTorch: embedding and the layers below the cut, nothing else."""

from __future__ import annotations

import copy
from typing import Final, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from sf_contract.errors import ModelError
from sf_model.blocks import (
    Blocks,
    ResultForm,
    StandIn,
    check_split_layer,
    find_blocks,
    refused_when_it_fails,
    result_form,
    rows_reaching,
)
from sf_model.config_view import FAMILIES_CURE, view_config
from sf_model.taking_apart import drop_what_follows

PROBE_LENGTHS: Final = (9, 5)
"""Tokens of the two sequences that a cut is tried on."""

MAX_PADDING_GAP: Final = 1e-3
"""Relative, in fp32: another batch shape takes other kernels, which differ by rounding, about 1e-6."""


class FrontModel(nn.Module):
    """Token ids to hidden states at the cut.

    Attributes:
        base: a bare base model whose block list ends, at the cut, with a stand-in that reads the hidden states; nothing
            that only runs after it has weights, and none of it is part of the result.
        end: that stand-in.
    """

    def __init__(self, base: PreTrainedModel, blocks_path: str, form: ResultForm) -> None:
        super().__init__()
        self.base = base
        self._reached: torch.Tensor | None = None
        blocks = cast(nn.ModuleList, base.get_submodule(blocks_path))
        self.end = StandIn(blocks[-1], form, self._read)
        blocks.append(self.end)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden states `[batch, tokens, hidden]` of int64 `input_ids` and `attention_mask` `[batch, tokens]`."""
        try:
            self.base(input_ids=input_ids, attention_mask=attention_mask)
            return cast(torch.Tensor, self._reached)
        finally:
            self._reached = None

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        self._reached = rows
        return rows


def cut_front(model: PreTrainedModel, split_layer: int) -> FrontModel:
    """A copy of the model's embedding and first `split_layer` blocks, proven equal to the whole model at the cut.

    The model itself is left as it was.

    Raises:
        SplitLayerError: the cut lies outside the model.
        ModelError: the part below the cut does not compute the whole model's hidden states, or padding changes them.
    """
    whole = cast(PreTrainedModel, model.base_model)
    blocks = find_blocks(whole)
    check_split_layer(split_layer, len(blocks.modules), model.config.model_type)
    form = result_form(whole, blocks)
    front = FrontModel(_copy_below(whole, blocks, split_layer), blocks.path, form).eval()
    input_ids, mask = probe_batch(model)
    with torch.no_grad(), refused_when_it_fails(model, f"cut at {split_layer}"):
        wanted = rows_reaching(whole, blocks.modules[split_layer], input_ids, mask)
        _check_shape(model, wanted, mask)
        drop_what_follows(front.base, front.end, lambda: front(input_ids, mask))
        rows = front(input_ids, mask)
        short = front(input_ids[1:, : PROBE_LENGTHS[1]], mask[1:, : PROBE_LENGTHS[1]])
    if rows.shape != wanted.shape or not torch.equal(rows[mask > 0], wanted[mask > 0]):
        raise ModelError(
            f"{model.config.model_type}: the layers below cut {split_layer} alone do not compute the whole model's "
            "hidden states, so its layers share state across the cut",
            cure="choose another model or cut",
        )
    check_padding(model, short[0], rows[1, : PROBE_LENGTHS[1]])
    return front


def probe_batch(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask `[2, tokens]` of two sequences with `PROBE_LENGTHS` tokens, the same for the same vocabulary."""
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    generator = torch.Generator().manual_seed(0)
    shape = len(PROBE_LENGTHS), max(PROBE_LENGTHS)
    input_ids = torch.randint(0, int(embedding.weight.shape[0]), shape, generator=generator)
    mask = (torch.arange(shape[1]) < torch.tensor(PROBE_LENGTHS)[:, None]).long()
    device = embedding.weight.device
    return (input_ids * mask).to(device), mask.to(device)


def check_padding(model: PreTrainedModel, alone: torch.Tensor, in_batch: torch.Tensor) -> None:
    """Refuse a model whose results for a sequence alone and for the same one beside a longer one differ.

    Raises:
        ModelError: they do.
    """
    gap = relative_gap(in_batch, alone)
    if not gap < MAX_PADDING_GAP:
        raise ModelError(
            f"{model.config.model_type} gives a sequence other results when it is padded (relative gap {gap:.2g}), so "
            "it mixes padding into the text",
            cure=FAMILIES_CURE,
        )


def relative_gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm of `wanted`."""
    return float((found - wanted).float().norm() / wanted.float().norm().clamp(min=1e-6))


def _check_shape(model: PreTrainedModel, rows: torch.Tensor, mask: torch.Tensor) -> None:
    hidden = view_config(model.config).hidden
    if tuple(rows.shape) != (*mask.shape, hidden):
        raise ModelError(
            f"{model.config.model_type} passes hidden states of shape {list(rows.shape)} from layer to layer for "
            f"{list(mask.shape)} tokens; a cut needs one row of {hidden} channels per token",
            cure=FAMILIES_CURE,
        )


def _copy_below(whole: PreTrainedModel, blocks: Blocks, split_layer: int) -> PreTrainedModel:
    """A deep copy without the blocks from the cut on; they are set aside first so that they are never copied."""
    setattr(blocks.parent, blocks.name, nn.ModuleList(list(blocks.modules)[:split_layer]))
    try:
        base = copy.deepcopy(whole)
    finally:
        setattr(blocks.parent, blocks.name, blocks.modules)
    base.config.use_cache = False
    return base
