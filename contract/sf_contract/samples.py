"""From a record to token ids: the one rule that device, server and exporter share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from sf_contract.activations import NO_TARGET, Targets
from sf_contract.manifest import Task, TaskSpec
from sf_contract.records import Record

LABEL_COLUMN: Final = "label"
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class TextTokenizer(Protocol):
    """Text to token ids."""

    def encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        """Token ids; with special tokens they survive the cut to `max_tokens`."""


class UnusableRecord(Exception):
    """A record that cannot become a sample; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedSample:
    """Token ids of one sample.

    `targets` int32 `[tokens]` is given for causal-lm, `label` for classification (None when the record need not have one).
    """

    token_ids: list[int]
    label: int | None = None
    targets: Targets | None = None
    was_cut: bool = False


def template_fields(template: str) -> tuple[str, ...]:
    """Columns a template refers to, in order of appearance."""
    return tuple(dict.fromkeys(_FIELD.findall(template)))


def fill_template(template: str, record: Record) -> str:
    """The template with every `{column}` replaced.

    Raises:
        UnusableRecord: a column is missing.
    """

    def value_of(match: re.Match[str]) -> str:
        value = record.get(match[1])
        if value is None:
            raise UnusableRecord(f"column {match[1]!r} is missing (the row has: {', '.join(record) or 'none'})")
        return value

    return _FIELD.sub(value_of, template)


def tokenize(
    record: Record, spec: TaskSpec, tokenizer: TextTokenizer, *, max_tokens: int, need_label: bool = True
) -> TokenizedSample:
    """The sample of a record; too long ones are cut at the end.

    Args:
        need_label: False where the label is what is asked for (prediction); classification then allows rows without one.

    Raises:
        UnusableRecord: a column is missing, the text is empty, the label is unknown or no completion token is left.
    """
    prompt = fill_template(spec.template.prompt, record)
    if not prompt.strip():
        raise UnusableRecord("the text is empty")
    match spec.task:
        case Task.TEXT_CLASSIFICATION:
            label = _label_index(record, spec) if need_label else None
            return _classification_sample(prompt, label, tokenizer, max_tokens)
        case Task.CAUSAL_LM:
            completion = fill_template(spec.template.completion or "{completion}", record)
            return _completion_sample(prompt, completion, spec, tokenizer, max_tokens)


def _classification_sample(text: str, label: int | None, tokenizer: TextTokenizer, max_tokens: int) -> TokenizedSample:
    whole = tokenizer.encode(text, special_tokens=True, max_tokens=None)
    token_ids = whole
    if len(whole) > max_tokens:
        token_ids = tokenizer.encode(text, special_tokens=True, max_tokens=max_tokens)
    if not token_ids:
        raise UnusableRecord("the text has no tokens")
    return TokenizedSample(token_ids=token_ids, label=label, was_cut=len(whole) > max_tokens)


def _completion_sample(
    prompt: str, completion: str, spec: TaskSpec, tokenizer: TextTokenizer, max_tokens: int
) -> TokenizedSample:
    """Row i predicts token i + 1, so the last token needs no row: n + 1 ids give n rows and n targets."""
    prompt_ids = tokenizer.encode(prompt, special_tokens=True, max_tokens=None)
    completion_ids = tokenizer.encode(completion, special_tokens=False, max_tokens=None)
    if not prompt_ids or not completion_ids:
        raise UnusableRecord("the prompt or the completion has no tokens")
    if spec.end_token_id is not None:
        completion_ids = [*completion_ids, spec.end_token_id]
    whole = prompt_ids + completion_ids
    kept = whole[: max_tokens + 1]
    if len(kept) <= len(prompt_ids):
        raise UnusableRecord(f"the prompt alone has {len(prompt_ids)} tokens; at most {max_tokens} are allowed")
    targets = np.full(len(kept) - 1, NO_TARGET, dtype=np.int32)
    targets[len(prompt_ids) - 1 :] = kept[len(prompt_ids) :]
    return TokenizedSample(token_ids=kept[:-1], targets=targets, was_cut=len(kept) < len(whole))


def _label_index(record: Record, spec: TaskSpec) -> int:
    label = record.get(LABEL_COLUMN)
    if label is None or not label.strip():
        raise UnusableRecord(f"column {LABEL_COLUMN!r} is missing or empty")
    try:
        return spec.labels.index(label)
    except ValueError:
        known = ", ".join(spec.labels[:12]) + (", ..." if len(spec.labels) > 12 else "")
        raise UnusableRecord(f"label {label!r} is unknown; the bundle knows: {known}") from None
