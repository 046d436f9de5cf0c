"""A model held in bf16 or fp16 that computes what the same model in fp32 computes, one block at a time.

Every bf16 and fp16 number is an fp32 number too. So a block whose weights become fp32 just before it runs, and the
originals again just after, gives what it gives in an fp32 model, bit for bit; and only one block is held twice.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from sf_contract.manifest import Task
from sf_model.blocks import find_blocks
from sf_model.checkpoint import Checkpoint, load_model
from sf_model.progress import Say, silent

WHOLE_BELOW_BYTES: Final = 400_000_000
"""Making blocks fp32 again for every sequence takes longer; below this, memory is not worth the wait."""

_PROBE_TOKENS: Final = 3
_SMALL: Final = 8
"""Vocabulary entries of the model that is built only for its constants."""


class _Buffers:
    """fp32 memory for weights, used again and again: the first touch of fresh memory costs more than the conversion."""

    def __init__(self) -> None:
        self._free: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)

    def __deepcopy__(self, _: object) -> _Buffers:
        return _Buffers()

    def take(self, original: torch.Tensor) -> torch.Tensor:
        free = self._free[original.shape]
        buffer = free.pop() if free else torch.empty(original.shape, dtype=torch.float32)
        return buffer.copy_(original)

    def give_back(self, buffer: torch.Tensor) -> None:
        self._free[buffer.shape].append(buffer)

    def clear(self) -> None:
        self._free.clear()


class _InFp32:
    """Two hooks around one module: its weights are fp32 while it runs. Copied with the module.

    Args:
        buffers: where fp32 memory comes from; None where a module may hand out its weights themselves.
        with_children: the weights of all submodules too.
    """

    def __init__(self, buffers: _Buffers | None, *, with_children: bool) -> None:
        self.buffers = buffers
        self._with_children = with_children
        self._held: list[tuple[nn.Parameter, torch.Tensor]] = []

    def attach(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self.before)
        module.register_forward_hook(self.after, always_call=True)

    def before(self, module: nn.Module, _: object) -> None:
        for parameter in module.parameters(recurse=self._with_children):
            if parameter.is_floating_point() and parameter.dtype is not torch.float32:
                original = parameter.data
                self._held.append((parameter, original))
                parameter.data = original.float() if self.buffers is None else self.buffers.take(original)

    def after(self, *_: object) -> None:
        while self._held:
            parameter, original = self._held.pop()
            if self.buffers is not None:
                self.buffers.give_back(parameter.data)
            parameter.data = original


class _LooksUp:
    """A hook after a plain embedding: a row that was looked up is made fp32, instead of the table."""

    def attach(self, module: nn.Module) -> None:
        module.register_forward_hook(self.after)

    def after(self, _: nn.Module, __: object, rows: torch.Tensor) -> torch.Tensor:
        return rows.float()


def load_exact(
    checkpoint: Checkpoint, *, task: Task | None, whole_below_bytes: int = WHOLE_BELOW_BYTES, say: Say = silent
) -> PreTrainedModel:
    """A model that computes in fp32, held in the checkpoint's own dtype wherever its architecture lets it.

    Args:
        whole_below_bytes: smaller checkpoints become fp32 as a whole, once.

    Raises:
        ModelError: as `load_model` does.
    """
    if checkpoint.own_dtype is not torch.float32 and checkpoint.weights.nbytes >= whole_below_bytes:
        model = load_model(checkpoint, task=task, dtype=checkpoint.own_dtype, say=say).model
        if _constants_made_exact(model):
            compute_in_fp32(model)
            if _runs_in_fp32(model):
                free_buffers(model)
                return model
        say(f"{checkpoint.identity.model_type} needs all of its weights in fp32")
    return load_model(checkpoint, task=task, dtype=torch.float32, say=say).model


def compute_in_fp32(model: PreTrainedModel) -> None:
    """Let a model compute in fp32 from now on, whatever its weights are held in; hidden states are fp32 throughout."""
    blocks = find_blocks(model)
    buffers = _Buffers()
    inside = {id(part) for block in blocks.modules for part in block.modules()}
    for block in blocks.modules:
        _InFp32(buffers, with_children=True).attach(block)
    for module in model.modules():
        if id(module) in inside or not _owns_parameters(module):
            continue
        if type(module) is nn.Embedding:
            _LooksUp().attach(module)
        else:
            reused = buffers if type(module) is nn.Linear else None
            _InFp32(reused, with_children=False).attach(module)


def free_buffers(model: nn.Module) -> None:
    """Let go of the fp32 memory that the model's blocks share; it is taken again when the model runs again."""
    for part in model.modules():
        for hook in part._forward_pre_hooks.values():
            ours = getattr(hook, "__self__", None)
            if isinstance(ours, _InFp32) and ours.buffers is not None:
                ours.buffers.clear()


def held_in_fp32(module: nn.Module) -> None:
    """Make all weights of a module fp32 in place, for instance of a cut-off front end, and take the hooks away."""
    for part in module.modules():
        for hooks in (part._forward_pre_hooks, part._forward_hooks):
            for number in [number for number, hook in hooks.items() if _is_ours(hook)]:
                # The hooks of a copied module came with the copy: nobody holds a handle to remove them by.
                del hooks[number]
    module.float()


def _is_ours(hook: object) -> bool:
    return isinstance(getattr(hook, "__self__", None), _InFp32 | _LooksUp)


def _owns_parameters(module: nn.Module) -> bool:
    return any(parameter.is_floating_point() for parameter in module.parameters(recurse=False))


def _constants_made_exact(model: PreTrainedModel) -> bool:
    """Give constants such as an embedding scale the value they have in an fp32 model; False when that is not known.

    They are computed when a model is built, in the dtype it is built in.
    """
    rounded = dict(_rounded_constants(model))
    if not rounded:
        return True
    exact = dict(_small_fp32_twin(model).named_buffers())
    for name, constant in rounded.items():
        if name not in exact or exact[name].shape != constant.shape:
            return False
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, exact[name])
    return True


def _rounded_constants(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, constant in model.named_buffers():
        if constant.is_floating_point() and constant.dtype is not torch.float32:
            yield name, constant


def _small_fp32_twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same architecture and channels in fp32, with one layer and a few tokens."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 1, _SMALL, None
    config.dtype = torch.float32
    kind: Any = type(model)
    return cast(PreTrainedModel, kind(config))


def _runs_in_fp32(model: PreTrainedModel) -> bool:
    token_ids = torch.zeros((1, _PROBE_TOKENS), dtype=torch.int64)
    try:
        with torch.no_grad():
            output = model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids))
    except RuntimeError:  # a weight is used outside of the module that owns it
        return False
    return bool(output[0].dtype is torch.float32)
