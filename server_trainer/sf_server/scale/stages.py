"""A back end divided over processes: which layers each stage holds, and how a batch is cut for them. Pure but for tensors."""

from __future__ import annotations

import dataclasses
import enum
from typing import Final

import torch
from torch.nn.functional import pad

from sf_contract.activations import NO_TARGET
from sf_contract.errors import UsageError
from sf_model.back import PadSide
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.lora import LoraPlan

TOKENS_STEP: Final = 16
"""Stages exchange rows of shapes that both ends know, so batches are padded to a multiple of this many tokens."""


class ScheduleKind(enum.Enum):
    """In which order a stage computes its micro-batches."""

    ONE_F_ONE_B = "1f1b"
    """One forward, one backward (PipeDream-flush, arXiv 2006.09503)."""

    ZERO_BUBBLE = "zero-bubble"
    """Backward in two parts, for the input and for the weights; the second fills the bubbles (ZB1P, arXiv 2401.10241)."""


def divide_layers(first: int, layers: int, stages: int) -> tuple[tuple[int, int], ...]:
    """`(first, until)` of each stage: as even as possible, the last ones smaller, as the last holds the head as well.

    Args:
        first: the layer at which training enters the model.
        layers: of the whole model.

    Raises:
        UsageError: there are fewer layers than stages.
    """
    count = layers - first
    if count < stages:
        raise UsageError(
            f"{count} layers (from layer {first} on) cannot be divided into {stages} pipeline stages",
            cure=f"give --pipeline-stages {count} or less",
        )
    whole, rest = divmod(count, stages)
    ends = [first + whole * (index + 1) + min(rest, index + 1) for index in range(stages)]
    return tuple(zip([first, *ends[:-1]], ends, strict=True))


def plan_of_stage(plan: LoraPlan, bounds: tuple[int, int], *, is_last: bool) -> LoraPlan:
    """The part of a LoRA plan that lies in one stage; modules trained whole belong to the head, so to the last one."""
    first, until = bounds
    layers = tuple(layer for layer in plan.layers if first <= layer < until)
    ranks = {layer: rank for layer, rank in plan.layer_ranks.items() if layer in layers}
    return dataclasses.replace(plan, layers=layers, layer_ranks=ranks, new_modules=plan.new_modules if is_last else ())


def padded_tokens(tokens: int, *, most: int) -> int:
    """Width of a batch for the stages: the next multiple of `TOKENS_STEP`, but no more than the model takes."""
    return max(tokens, min(-(-tokens // TOKENS_STEP) * TOKENS_STEP, most))


def cut_to_fit(batch: BatchTensors, side: PadSide, *, microbatches: int, most_tokens: int) -> BatchTensors:
    """The batch with a width that few batches do not share, and as many samples as can be cut into micro-batches.

    Samples that are added repeat the last one and have no target, so they add nothing to loss and gradients.
    """
    samples, tokens = batch.mask.shape
    more_tokens = padded_tokens(tokens, most=most_tokens) - tokens
    more_samples = -samples % microbatches
    before, after = (more_tokens, 0) if side is PadSide.LEFT else (0, more_tokens)
    labels = pad(batch.labels, (before, after), value=NO_TARGET) if batch.labels.ndim > 1 else batch.labels
    return BatchTensors(
        rows=_with_repeats(pad(batch.rows, (0, 0, before, after)), more_samples),
        mask=_with_repeats(pad(batch.mask, (before, after)), more_samples),
        labels=torch.cat([labels, labels.new_full((more_samples, *labels.shape[1:]), NO_TARGET)]),
        tokens=batch.tokens,
        weights=None if batch.weights is None else _with_repeats(batch.weights, more_samples),
    )


def _with_repeats(tensor: torch.Tensor, more: int) -> torch.Tensor:
    return torch.cat([tensor, tensor[-1:].expand(more, *tensor.shape[1:])])
