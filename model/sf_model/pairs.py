"""Pairs of texts for models that tell two segments apart, such as BERT: the tokenizer's own pair form, and token types.

A pair is one text whose template holds the separator, as in `{sentence1} [SEP] {sentence2}`: tokenizers read that token in
a text as themselves, so the ids are those of their pair form. Which segment a token belongs to follows from the ids, so it is
computed from them inside the model (and with it in the graph of a front end), and nothing else has to be sent or kept.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sf_contract.errors import UsageError
from sf_model.checkpoint import Checkpoint

PLAIN_JOINT: Final = "\n"
"""For models whose tokenizer has no pair form, decoders among them: one text per line."""

_PROBES: Final = (("the cat sat", "a dog ran home"), ("one", "two three"))
_TYPES: Final = "token_type_ids"


@dataclass(frozen=True, slots=True)
class PairForm:
    """How a model's tokenizer joins two texts.

    Attributes:
        separator: the token between them.
        separator_id: its id.
        has_types: the tokens behind the first separator are of another type than those before.
    """

    separator: str
    separator_id: int
    has_types: bool


def pair_template(checkpoint: Checkpoint, columns: tuple[str, str]) -> str:
    """The template that joins two columns as this model's tokenizer joins a pair, or on two lines where it has no such form.

    Raises:
        UsageError: the tokenizer has a form of its own that a template cannot express.
    """
    tokenizer = _tokenizer(checkpoint)
    form = _pair_form(tokenizer)
    if form is None:
        return f"{{{columns[0]}}}{PLAIN_JOINT}{{{columns[1]}}}"
    for joint in (f" {form.separator} ", form.separator, form.separator * 2, f" {form.separator}{form.separator} "):
        if all(_joined_ids(tokenizer, a + joint + b) == tokenizer(a, b)["input_ids"] for a, b in _PROBES):
            return f"{{{columns[0]}}}{joint}{{{columns[1]}}}"
    raise UsageError(
        f"the pair form of {checkpoint.identity.name} cannot be written as a template",
        cure=f"write one with --template, as in --template 'A: {{{columns[0]}}} B: {{{columns[1]}}}'",
    )


def pair_separator(checkpoint: Checkpoint, template: str) -> int | None:
    """The id behind which tokens are of the second type; None where the template joins no pair, or the model knows no types."""
    if int(getattr(checkpoint.config.get_text_config(), "type_vocab_size", 0) or 0) < 2:
        return None
    form = _pair_form(_tokenizer(checkpoint))
    if form is None or not form.has_types or form.separator not in template:
        return None
    return form.separator_id


def tell_segments(model: PreTrainedModel, separator: int | None) -> None:
    """Let the model give every token behind the first separator the type 1 whenever it is run on ids; None changes nothing.

    Copies of the model, and front ends that are cut from it, do the same.
    """
    takes_types = _TYPES in inspect.signature(model.base_model.forward).parameters
    if separator is not None and takes_types:
        model.base_model.register_forward_pre_hook(_TypesFromIds(separator), with_kwargs=True)


def token_types(input_ids: torch.Tensor, separator: int) -> torch.Tensor:
    """int64 `[batch, tokens]`: 0 up to the first separator, 1 behind it."""
    found = (input_ids == separator).long()
    return ((found.cumsum(1) - found) > 0).long()


class _TypesFromIds:
    def __init__(self, separator: int) -> None:
        self._separator = separator

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None or kwargs.get(_TYPES) is not None:
            return None
        return args, {**kwargs, _TYPES: token_types(input_ids, self._separator)}


def _tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)


def _pair_form(tokenizer: PreTrainedTokenizerBase) -> PairForm | None:
    """None for tokenizers that put nothing of their own between two texts, or something else than their separator."""
    separator_id = tokenizer.sep_token_id
    if not isinstance(separator_id, int):
        return None
    (first, second), *_ = _PROBES
    both = tokenizer(first, second, return_token_type_ids=True)
    alone = tokenizer(first, add_special_tokens=False)["input_ids"]
    start = next((n for n in range(len(both["input_ids"])) if both["input_ids"][n : n + len(alone)] == alone), None)
    if start is None or both["input_ids"][start + len(alone)] != separator_id:
        return None
    wanted = token_types(torch.tensor([both["input_ids"]]), separator_id)[0].tolist()
    return PairForm(separator=str(tokenizer.sep_token), separator_id=separator_id, has_types=both.get(_TYPES) == wanted)


def _joined_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids
