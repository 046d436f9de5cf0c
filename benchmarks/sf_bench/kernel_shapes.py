"""The matrix products of a model's layer, from its config alone: no weights are loaded."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from transformers import AutoModel

from sf_bench.kernels import Shape
from sf_model.blocks import find_blocks
from sf_model.checkpoint import open_checkpoint


def layer_shapes(model: str) -> tuple[Shape, ...]:
    """Weights `[inner, outer]` of the first layer, in order of appearance.

    Args:
        model: hub id, model folder or `.gguf` file.

    Raises:
        ModelError: it cannot be found or read, or its layers form no list.
    """
    checkpoint = open_checkpoint(model)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(checkpoint.config)  # type: ignore[no-untyped-call]  # has no types
    block = find_blocks(skeleton).modules[0]
    counts = Counter(shape for module in block.modules() if (shape := _weight_shape(module)) is not None)
    return tuple(Shape(inner, outer, count) for (inner, outer), count in counts.items())


def _weight_shape(module: nn.Module) -> tuple[int, int] | None:
    """`(inner, outer)` of a linear module; GPT-2's Conv1D has its weight the other way round."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return None
    first, second = int(weight.shape[0]), int(weight.shape[1])
    return (second, first) if isinstance(module, nn.Linear) else (first, second)
