"""Taking a loaded model apart: a second model of the same weights, and the weights that a part of it does without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel


class Skipped(nn.Module):
    """Takes the place of what only runs after a cut, such as a final norm, a pooler, or an output projection."""

    def forward(self, *args: Any, **kwargs: Any) -> object:
        """The first argument."""
        return next(iter((*args, *kwargs.values())))


def sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second model of the same modules that can be taken apart; its weights are the first one's, not copies."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


def drop_what_follows(base: nn.Module, end: nn.Module, run: Callable[[], object]) -> None:
    """Take the weights away from every module of `base` that runs after `end` only.

    Args:
        base: a bare base model.
        end: one of its modules.
        run: runs `base` once.
    """
    with _calls(base, end) as (before, after):
        run()
    followers = [path for path in after if path not in before]
    for path in followers:
        if not any(path.startswith(outer + ".") for outer in followers):
            parent, _, name = path.rpartition(".")
            setattr(base.get_submodule(parent), name, Skipped())


def drop_head(model: PreTrainedModel) -> None:
    """Take away everything that `model` has besides its base model."""
    base = model.base_model
    for name, child in list(model.named_children()):
        if base is not model and child is not base:
            setattr(model, name, Skipped())


def release_embedding(model: PreTrainedModel) -> int:
    """Free the token embedding unless the output head shares its weight: rows never pass through it.

    Returns:
        Its channels; some models widen or narrow them before the first block.
    """
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    channels = int(embedding.weight.shape[1])
    head = cast(nn.Module | None, model.get_output_embeddings())  # type: ignore[no-untyped-call]
    if getattr(head, "weight", None) is not embedding.weight:
        embedding.weight = nn.Parameter(embedding.weight[:1].clone(), requires_grad=False)
    return channels


@contextmanager
def _calls(base: nn.Module, end: nn.Module) -> Iterator[tuple[set[str], list[str]]]:
    """Paths of the modules in `base` that are called before `end` is reached, and after."""
    before: set[str] = set()
    after: list[str] = []
    reached = False

    def note(path: str, module: nn.Module) -> None:
        nonlocal reached
        if reached:
            after.append(path)
        else:
            before.add(path)
        reached = reached or module is end

    handles = [
        module.register_forward_pre_hook(lambda module, _, path=path: note(path, module))
        for path, module in base.named_modules()
    ]
    try:
        yield before, after
    finally:
        for handle in handles:
            handle.remove()
