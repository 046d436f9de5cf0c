"""Trying a cut on the loaded model: front and back together compute what the whole model computes, or it is refused."""

from __future__ import annotations

from typing import Final, cast

import torch
from transformers import PreTrainedModel

from sf_contract.errors import ModelError
from sf_model.back import BackEnd, PadSide
from sf_model.blocks import find_blocks, refused_when_it_fails, rows_leaving
from sf_model.front import PROBE_LENGTHS, check_padding, probe_batch, relative_gap
from sf_model.precision import free_buffers
from sf_model.taking_apart import sharing_weights

_MAX_GAP: Final = 1e-4
"""Relative. The same operations in the same order give 0; the room is for threads that add in another order."""


@torch.no_grad()
def check_cut(model: PreTrainedModel, split_layer: int) -> None:
    """Prove on two short sequences that the layers from the cut on need nothing but the hidden states at the cut.

    That the layers below the cut give these is what `cut_front` proves. The model is left as it was, and no weight is
    copied; the work is that of the whole model and twice that of its back end, on a dozen tokens.

    Args:
        model: computes in fp32.
        split_layer: the cut.

    Raises:
        SplitLayerError: the cut lies outside the model.
        ModelError: the layers above the cut read something else from below it, such as per-layer embeddings, keys and
            values of earlier layers, or the embeddings; or padding changes results.
    """
    base = cast(PreTrainedModel, model.base_model)
    input_ids, mask = probe_batch(model)
    with refused_when_it_fails(model, f"run in two parts at cut {split_layer}"):
        back_end = BackEnd(sharing_weights(base), split_layer, pad_side=PadSide.RIGHT, rows_dtype=torch.float32)
        with rows_leaving(find_blocks(base).modules[split_layer]) as captured:
            wanted = base(input_ids=input_ids, attention_mask=mask)[0]
        found = back_end(captured[0], mask)
        length = PROBE_LENGTHS[1]
        short = back_end(captured[0][1:, :length], mask[1:, :length])
    free_buffers(back_end)
    gap = relative_gap(found[mask > 0], wanted[mask > 0])
    if not gap < _MAX_GAP:
        raise ModelError(
            f"{model.config.model_type}: the layers from {split_layer} on need more than the hidden states at the cut "
            f"(relative gap {gap:.2g}): they share state with layers below it",
            cure="choose another model or cut",
        )
    check_padding(model, short[0], wanted[1, :length])
