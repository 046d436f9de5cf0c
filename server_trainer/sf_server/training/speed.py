"""What makes a training step cheaper without changing what it computes, put on a back end once it carries LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sf_model.back import Segment
from sf_model.packed import blocks_of, pack_if_possible
from sf_server.training.fused_lora import fuse_lora


@dataclass(frozen=True, slots=True)
class Speedups:
    """What a back end got.

    Attributes:
        packed: its blocks compute real rows only, no padding.
        fused: projections whose LoRA is computed together with them.
        checkpointed: blocks are computed again for the backward pass instead of being remembered.
        compiled: blocks are compiled.
    """

    packed: bool
    fused: int
    checkpointed: bool
    compiled: bool


def speed_up(segment: Segment, *, gradient_checkpointing: bool = False, compile_blocks: bool = False) -> Speedups:
    """Let a segment that carries LoRA compute with less waste; results stay what they were, up to rounding.

    Args:
        gradient_checkpointing: needs the memory of one block instead of all, for one more forward pass.
        compile_blocks: with `torch.compile`.
    """
    packed = pack_if_possible(segment) is not None
    fused = fuse_lora(segment)
    for block in blocks_of(segment):
        if compile_blocks:
            block.forward = torch.compile(block.forward, dynamic=True)
        if gradient_checkpointing:
            block.forward = partial(_checkpointed, block, block.forward)
    return Speedups(packed=packed, fused=fused, checkpointed=gradient_checkpointing, compiled=compile_blocks)


def _checkpointed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The block's hooks stay outside, so what they put in place is there again when the block is."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
