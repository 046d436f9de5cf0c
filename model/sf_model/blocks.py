"""Where a model's transformer blocks are, found by structure and not by family."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sf_contract.errors import ModelError, SplitFrozenError, SplitLayerError
from sf_model.config_view import FAMILIES_CURE, view_config

_MAX_REASON_CHARACTERS: Final = 200


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
        names = ", ".join(path for path, _ in outermost) or "none (do all layers share one block?)"
        raise ModelError(
            f"{model.config.model_type}: expected one list of {layers} transformer blocks, found {names}",
            cure="choose a model whose layers form one list, each with weights of its own",
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


class StandIn(nn.Module):
    """Takes a block's place: reads nothing of what it is given, returns given rows in the form that blocks return them.

    Args:
        block: the block whose place it takes.
        form: how the model's blocks return rows, from `result_form`.
        rows: what it returns, given the hidden states that reach it.
    """

    def __init__(self, block: nn.Module, form: ResultForm, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        for name, value in vars(block).items():
            # Some models choose a layer's attention mask by an attribute of the block, such as `attention_type`.
            if not name.startswith("_") and isinstance(value, str | int | float):
                setattr(self, name, value)
        self._form = form
        self._given_rows = rows

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
        """The given rows; the other parts of a block's result, such as attention weights, are None."""
        rows = self._given_rows(entering_rows(args, kwargs))
        return rows if self._form.items is None else (rows, *[None] * (self._form.items - 1))


@dataclass(frozen=True, slots=True)
class ResultForm:
    """How a block returns its hidden states: alone (`items` is None), or first in a sequence of so many items."""

    items: int | None


class _Seen(Exception):
    """Ends a run of a model whose purpose is reached."""


def result_form(model: PreTrainedModel, blocks: Blocks) -> ResultForm:
    """How the blocks of a model return their hidden states, seen by running the first one on two tokens.

    Raises:
        ModelError: the model cannot be run on token ids and their mask.
    """
    seen: list[ResultForm] = []

    def look(_: nn.Module, __: object, result: object) -> None:
        seen.append(ResultForm(items=len(result) if isinstance(result, tuple | list) else None))
        raise _Seen

    token_ids = torch.zeros((1, 2), dtype=torch.int64, device=next(model.parameters()).device)
    with refused_when_it_fails(model, "run on token ids and a mask"):
        _run_until_seen(model, blocks.modules[0].register_forward_hook(look), token_ids, torch.ones_like(token_ids))
    if not seen:
        raise ModelError(
            f"{model.config.model_type} does not run its blocks as modules, so nothing can take their place",
            cure=FAMILIES_CURE,
        )
    return seen[0]


def rows_reaching(
    model: PreTrainedModel, block: nn.Module, input_ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Hidden states entering `block`; the model runs no further."""
    seen: list[torch.Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(entering_rows(args, kwargs))
        raise _Seen

    _run_until_seen(model, block.register_forward_pre_hook(look, with_kwargs=True), input_ids, mask)
    return seen[0]


def _run_until_seen(
    model: PreTrainedModel, handle: RemovableHandle, input_ids: torch.Tensor, mask: torch.Tensor
) -> None:
    try:
        with torch.no_grad(), contextlib.suppress(_Seen):
            model.base_model(input_ids=input_ids, attention_mask=mask)
    finally:
        handle.remove()


@contextmanager
def refused_when_it_fails(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Turn whatever the model's own code raises within the context into the statement that it cannot be `what`.

    Raises:
        ModelError: something was raised.
    """
    try:
        yield
    except SplitFrozenError:
        raise
    except Exception as problem:  # code of any architecture is run here in ways that it may not foresee
        reason = " ".join(str(problem).split())[:_MAX_REASON_CHARACTERS]
        raise ModelError(
            f"{model.config.model_type} cannot be {what} ({type(problem).__name__}: {reason})", cure=FAMILIES_CURE
        ) from problem


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
        captured.append(entering_rows(args, kwargs).detach())

    handle = block.register_forward_pre_hook(capture, with_kwargs=True)
    try:
        yield captured
    finally:
        handle.remove()


def entering_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states among a block's arguments: the first, or the one called `hidden_states`."""
    rows: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return rows


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
