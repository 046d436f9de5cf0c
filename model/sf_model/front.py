"""The front end in PyTorch: embedding and the layers below the cut, nothing else."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from sf_contract.errors import ModelError
from sf_model.blocks import Blocks, check_split_layer, find_blocks, rows_leaving

_PROBE_TOKENS = 7


class FrontModel(nn.Module):
    """Token ids to hidden states at the cut.

    Attributes:
        base: a bare base model whose block list ends at the cut and in which nothing follows the blocks.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.base = base

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden states `[batch, tokens, hidden]` of int64 `input_ids` and `attention_mask` `[batch, tokens]`."""
        hidden: torch.Tensor = self.base(input_ids=input_ids, attention_mask=attention_mask)[0]
        return hidden


def cut_front(model: PreTrainedModel, split_layer: int) -> FrontModel:
    """A copy of the model's embedding and first `split_layer` blocks, proven equal to the whole model at the cut.

    The model itself is left as it was.

    Raises:
        SplitLayerError: the cut lies outside the model.
        ModelError: the part below the cut does not compute the whole model's hidden states.
    """
    whole = cast(PreTrainedModel, model.base_model)
    blocks = find_blocks(whole)
    check_split_layer(split_layer, len(blocks.modules), model.config.model_type)
    front = FrontModel(_copy_below(whole, blocks, split_layer)).eval()
    input_ids, mask = _probe(model)
    with torch.no_grad():
        last_block = front.base.get_submodule(f"{blocks.path}.{split_layer - 1}")
        _drop_what_follows(front, last_block, input_ids, mask)
        with rows_leaving(blocks.modules[split_layer]) as captured:
            whole(input_ids=input_ids, attention_mask=mask)
        rows = front(input_ids, mask)
    if rows.shape != captured[0].shape or not torch.equal(rows, captured[0]):
        raise ModelError(
            f"{model.config.model_type}: the layers below cut {split_layer} alone do not compute the whole model's "
            "hidden states, so its layers share state across the cut",
            cure="choose another model or cut",
        )
    return front


def _copy_below(whole: PreTrainedModel, blocks: Blocks, split_layer: int) -> PreTrainedModel:
    """A deep copy without the blocks from the cut on; they are set aside first so that they are never copied."""
    setattr(blocks.parent, blocks.name, nn.ModuleList(list(blocks.modules)[:split_layer]))
    try:
        base = copy.deepcopy(whole)
    finally:
        setattr(blocks.parent, blocks.name, blocks.modules)
    base.config.use_cache = False
    return base


def _probe(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, int(embedding.weight.shape[0]), (1, _PROBE_TOKENS), generator=generator)
    return input_ids, torch.ones_like(input_ids)


def _drop_what_follows(front: FrontModel, last_block: nn.Module, input_ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Replace by identity every module that runs after the last block: final norm, pooler, output projection."""
    after_blocks = False
    followers: list[str] = []

    def last_block_done(*_: object) -> None:
        nonlocal after_blocks
        after_blocks = True

    def note(path: str) -> None:
        if after_blocks and not any(path.startswith(outer + ".") for outer in followers):
            followers.append(path)

    handles = [last_block.register_forward_hook(last_block_done)]
    for path, module in front.base.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: note(path)))
    try:
        front(input_ids, mask)
    finally:
        for handle in handles:
            handle.remove()
    for path in followers:
        parent, _, name = path.rpartition(".")
        setattr(front.base.get_submodule(parent), name, nn.Identity())
