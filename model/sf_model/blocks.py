"""Where a model's transformer blocks are, found by structure and not by family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sf_contract.errors import ModelError, SplitLayerError
from sf_model.config_view import view_config


@dataclass(frozen=True, slots=True)
class Blocks:
    """The list of transformer blocks inside a model.

    Attributes:
        path: dotted name of the list, as in `named_modules`, for example `model.layers`.
        parent: the module that holds the list.
        name: the list's attribute name in `parent`.
        modules: the blocks in order.
    """

    path: str
    parent: nn.Module
    name: str
    modules: nn.ModuleList


def find_blocks(model: PreTrainedModel) -> Blocks:
    """The one list of as many blocks as the config names layers.

    Raises:
        ModelError: there is none, or more than one.
    """
    layers = view_config(model.config).layers
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and _is_block_list(module)
    ]
    outermost = [(path, m) for path, m in found if not any(path.startswith(other + ".") for other, _ in found)]
    if len(outermost) != 1:
        names = ", ".join(path for path, _ in outermost) or "none"
        raise ModelError(
            f"{model.config.model_type}: expected one list of {layers} transformer blocks, found {names}",
            cure="choose a model whose layers form one list",
        )
    path, modules = outermost[0]
    parent_path, _, name = path.rpartition(".")
    return Blocks(path=path, parent=model.get_submodule(parent_path), name=name, modules=modules)


def check_split_layer(split_layer: int, layers: int, model_name: str) -> None:
    """Refuse a cut that leaves one side without layers.

    Raises:
        SplitLayerError: naming the range that works.
    """
    if not 1 <= split_layer < layers:
        raise SplitLayerError(
            f"split layer {split_layer} is out of range: {model_name} has {layers} layers",
            cure=f"choose --split-layer from 1 to {layers - 1}",
        )


@contextmanager
def rows_entering(block: nn.Module, rows: torch.Tensor) -> Iterator[None]:
    """Within the context, `block` reads `rows` `[batch, tokens, hidden]` instead of what the model computed so far."""

    def substitute(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return replace_hidden_states(args, kwargs, rows)

    handle = block.register_forward_pre_hook(substitute, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def rows_leaving(block: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within the context, the hidden states entering `block` are appended to the list, one tensor per call."""
    captured: list[torch.Tensor] = []

    def capture(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.append((args[0] if args else kwargs["hidden_states"]).detach())

    handle = block.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        yield captured
    finally:
        handle.remove()


def replace_hidden_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], rows: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A block's arguments with its hidden states replaced; Transformers passes them first or by the name `hidden_states`."""
    if args:
        return (rows, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": rows}


def _is_block_list(modules: nn.ModuleList) -> bool:
    first = modules[0]
    if isinstance(first, nn.ModuleList) or not any(True for _ in first.parameters()):
        return False
    return len({type(module) for module in modules}) == 1 and any(True for _ in first.children())
