"""Greedy answers of a trained adapter, held against the merged model behind the same front end.

The merged model is not asked to write the answer again: it reads prompt and answer once, and at every place its most likely
token must be the one that follows. By induction that is the same as writing it greedily itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
import torch
from msgspec import Meta

from sf_bench.quality.judging import adapted_back_end
from sf_bench.quality.server_run import RowsOf
from sf_bench.studies.study import Opened
from sf_contract.activations import NO_TARGET
from sf_contract.samples import TokenizedSample
from sf_model.back import BackEnd
from sf_model.checkpoint import load_model
from sf_server.run_folder import RunFolder
from sf_server.training.batch_tensors import decode_to_tensor
from sf_server.training.lora import merge

Ids = tuple[int, ...]


class Answers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of some prompts.

    Attributes:
        tokens: of every answer.
        same: of every answer, those that the merged model would have written too, up to the first that differs.
        widest_gap: where tokens differ, by how much the merged model's own logit was larger at most; 0 where none does.
    """

    tokens: Annotated[tuple[int, ...], Meta(min_length=1)]
    same: tuple[int, ...]
    widest_gap: float

    @property
    def equal(self) -> int:
        """Answers that are the same to the last token."""
        return sum(ours == theirs for ours, theirs in zip(self.tokens, self.same, strict=True))


@dataclass(frozen=True, slots=True)
class Check:
    """Tokens until the first difference, and the gap there."""

    same: int
    gap: float


def prompts_of(samples: Sequence[TokenizedSample], count: int) -> list[Ids]:
    """Token ids of the first prompts, without their completions."""
    return [_prompt(sample) for sample in samples[:count]]


def compare_answers(opened: Opened, run: RunFolder, prompts: Sequence[Ids], *, rows_of: RowsOf) -> Answers:
    """Answer greedily with the adapter, and check with the merged model."""
    settings, bundle = opened.settings, opened.deepest
    with_adapter = adapted_back_end(
        opened.checkpoint, bundle, run.adapter_path, dtype=torch.float32, device=opened.device
    )
    end = bundle.manifest.task.end_token_id
    answers = [
        greedy(next_logits(with_adapter, rows_of), prompt, end=end, most=settings.new_tokens) for prompt in prompts
    ]
    del with_adapter
    spec = bundle.manifest.task
    whole = load_model(opened.checkpoint, task=spec.task, dtype=torch.float32, labels=spec.labels).model
    merged = BackEnd(merge(whole, run.adapter_path), bundle.manifest.geometry.split_layer)
    checks = [check(merged, rows_of, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return Answers(
        tokens=tuple(len(answer) for answer in answers),
        same=tuple(found.same for found in checks),
        widest_gap=max(found.gap for found in checks),
    )


def greedy(logits_after: Callable[[Ids], torch.Tensor], prompt: Ids, *, end: int | None, most: int) -> Ids:
    """The most likely token, again and again, until the text ends or is long enough."""
    answer: Ids = ()
    while len(answer) < most and (end is None or end not in answer):
        answer = (*answer, int(logits_after((*prompt, *answer)).argmax()))
    return answer


def next_logits(back_end: BackEnd, rows_of: RowsOf) -> Callable[[Ids], torch.Tensor]:
    """Logits `[vocabulary]` after some tokens."""
    return lambda ids: all_logits(back_end, rows_of, ids)[-1]


def check(back_end: BackEnd, rows_of: RowsOf, prompt: Ids, answer: Ids) -> Check:
    """How much of an answer this back end would have written too."""
    logits = all_logits(back_end, rows_of, (*prompt, *answer[:-1]))[len(prompt) - 1 :]
    for place, (found, token) in enumerate(zip(logits, answer, strict=True)):
        if int(found.argmax()) != token:
            return Check(same=place, gap=float(found.max() - found[token]))
    return Check(same=len(answer), gap=0.0)


@torch.no_grad()
def all_logits(back_end: BackEnd, rows_of: RowsOf, ids: Ids) -> torch.Tensor:
    """Logits `[tokens, vocabulary]` of one sequence."""
    back_end.model.train(False)
    rows, mask = back_end.pad([decode_to_tensor(rows_of(ids))])
    logits: torch.Tensor = back_end(rows, mask)
    return logits[0].float()


def _prompt(sample: TokenizedSample) -> Ids:
    if sample.targets is None:
        raise ValueError("a sample without targets has no prompt")
    first = int((sample.targets != NO_TARGET).argmax())
    return tuple(sample.token_ids[: first + 1])
