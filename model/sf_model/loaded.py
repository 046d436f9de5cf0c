"""What a loaded model must hold: every weight its layers need, in the right shape, and numbers only."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

import torch
from transformers import PretrainedConfig, PreTrainedModel

from sf_contract.errors import ModelError
from sf_model.weight_files import WeightFiles

_MAY_BE_NEW: Final = "pooler"
"""The one part of a base model that checkpoints leave out: it belongs to the head that is trained on top."""

_LISTED: Final = 3


def check_complete(model: PreTrainedModel, missing: Collection[str], *, name: str, head_may_be_new: bool) -> None:
    """Refuse a model of which a part was drawn at random because the checkpoint lacks it.

    Args:
        missing: names of the weights that were drawn.
        name: the model's, for the message.
        head_may_be_new: what stands on the base model may be missing, for it is about to be trained.

    Raises:
        ModelError: the base model, or a head that should have been there, is incomplete.
    """
    needed = sorted(_needed(model, missing, head_may_be_new=head_may_be_new))
    if needed:
        listed = ", ".join(needed[:_LISTED]) + (", ..." if len(needed) > _LISTED else "")
        raise ModelError(
            f"{name} lacks {len(needed)} of the weights its config.json asks for: {listed}",
            cure="fetch the model again, weights and config.json of the same version",
        )


def check_finite(model: PreTrainedModel, *, name: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        ModelError: naming the first tensor that holds a NaN or an infinity.
    """
    for tensor_name, tensor in _floating(model):
        # The smallest and the largest show both kinds, and need no copy of the tensor.
        low, high = torch.aminmax(tensor.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ModelError(
                f"{name}: {tensor_name} holds values that are not finite (from {float(low)} to {float(high)})",
                cure="fetch the model again, or choose another checkpoint of its training",
            )


def shape_mismatch(kind: type[PreTrainedModel], config: PretrainedConfig, weights: WeightFiles) -> str | None:
    """The first tensor whose shape is not what the config makes it, in words; None when all agree."""
    auto: Any = kind
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(config)
    except Exception:  # a config so wrong that no model can be made: its own message says more
        return None
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, info in weights.tensors.items():
        for candidate in (name, f"{model.base_model_prefix}.{name}"):
            if candidate in expected and expected[candidate] != info.shape:
                return f"{info.file}: {name} has shape {list(info.shape)}, config.json makes it {list(expected[candidate])}"
    return None


def _needed(model: PreTrainedModel, missing: Collection[str], *, head_may_be_new: bool) -> Iterator[str]:
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    for name in missing:
        in_base = name.startswith(prefix)
        may_be_new = name.removeprefix(prefix).startswith(f"{_MAY_BE_NEW}.") if in_base else head_may_be_new
        if not may_be_new:
            yield name


def _floating(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel():
            yield name, tensor
