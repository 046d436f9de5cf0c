"""What devices did not have to compute and send because the front end is frozen: FLOPs and bytes by rule. Pure.

The rule (two operations, a multiplication and an addition, for each weight and token):

    forward of one token on the device  = 2 x weights in the layers below the cut
    backward through a frozen base      = 1 x forward: gradients of the activations, none of the weights

Attention between tokens, norms and the embedding (a look-up) are left out on both sides. Compared is with split learning of
the same cut whose devices carry LoRA: every pass of every epoch then is a forward and a backward on the device, and an upload.
So for T tokens trained on in all epochs together, L of them in epochs after the first, and F FLOPs per token:

    forward passes not repeated = F x L          spent on the devices = F x (T - L)
    backward passes not done    = F x T          uploads not repeated = bytes per token x L
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sf_server.seeing.state import SavingsState

FLOPS_PER_WEIGHT: Final = 2
BACKWARD_PER_FORWARD: Final = 1.0
_LAYER_NUMBER: Final = re.compile(r"\.(\d+)\.")


def layer_weights(shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Weights in the matrices of each layer, from the names and shapes of a checkpoint's tensors.

    A layer's tensors carry its number as the first number in their name (`model.layers.3.mlp.up_proj.weight`).
    """
    counts: dict[int, int] = {}
    for name, shape in shapes.items():
        found = _LAYER_NUMBER.search(name)
        if found and name.endswith(".weight") and len(shape) >= 2:
            size = 1
            for extent in shape:
                size *= extent
            counts[int(found[1])] = counts.get(int(found[1]), 0) + size
    return tuple(counts.get(number, 0) for number in range(max(counts, default=-1) + 1))


def forward_flops(*, cut: int, hidden: int, weights: Sequence[int]) -> tuple[float, bool]:
    """FLOPs of one token through the layers below the cut, and whether `weights` told them.

    Without the weights of each layer, 12 x hidden² are assumed (GPT-2: 4 for attention, 8 for the MLP).
    """
    if len(weights) >= cut:
        return float(FLOPS_PER_WEIGHT * sum(weights[:cut])), True
    return float(FLOPS_PER_WEIGHT * 12 * hidden * hidden * cut), False


def savings(
    *,
    flops_per_token: float,
    is_estimated: bool,
    bytes_per_token: float,
    tokens_trained: int,
    later_tokens: int,
) -> SavingsState:
    """What was saved so far.

    Args:
        flops_per_token: forward on the device, the mean over the samples where cuts differ.
        bytes_per_token: on the link, towards the server.
        tokens_trained: over all epochs; `later_tokens` of them in epochs after the first.
    """
    forward = flops_per_token * later_tokens
    backward = flops_per_token * BACKWARD_PER_FORWARD * tokens_trained
    spent = flops_per_token * (tokens_trained - later_tokens)
    whole = forward + backward + spent
    return SavingsState(
        forward_flops=forward,
        backward_flops=backward,
        spent_flops=spent,
        upload_bytes=bytes_per_token * later_tokens,
        part=(forward + backward) / whole if whole else 0.0,
        is_estimated=is_estimated,
    )


def weighted_mean(values: Iterable[tuple[float, float]]) -> float:
    """Mean of (value, weight) pairs; 0 without weight."""
    total = weight_sum = 0.0
    for value, weight in values:
        total += value * weight
        weight_sum += weight
    return total / weight_sum if weight_sum else 0.0
