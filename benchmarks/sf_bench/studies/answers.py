"""Greedy answers of a trained adapter, held against the merged model's behind the same front end, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
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
from sf_server.results.generation import Ending, Generator, StopReason
from sf_server.run_folder import RunFolder
from sf_server.training.batch_tensors import decode_to_tensor
from sf_server.training.lora import merge

Ids = tuple[int, ...]


class Answers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of some prompts.

    Attributes:
        tokens: of every answer, the one that ends it included.
        same: of every answer, those before the first that the merged model wrote differently.
        widest_gap: where they part, by how much the merged model's own token was ahead at most, in logits; 0 where none do.
    """

    tokens: Annotated[tuple[int, ...], Meta(min_length=1)]
    same: tuple[int, ...]
    widest_gap: float

    @property
    def equal(self) -> int:
        """Answers that are the same to the last token."""
        return sum(ours == theirs for ours, theirs in zip(self.tokens, self.same, strict=True))


def prompts_of(samples: Sequence[TokenizedSample], count: int) -> list[Ids]:
    """Token ids of the first prompts, without their completions."""
    return [_prompt(sample) for sample in samples[:count]]


def compare_answers(opened: Opened, run: RunFolder, prompts: Sequence[Ids], *, rows_of: RowsOf) -> Answers:
    """Answer greedily with the adapter, and with the merged model; both through what `sf-server generate` runs."""
    bundle = opened.deepest
    spec, most = bundle.manifest.task, opened.settings.new_tokens

    def answers_of(back_end: BackEnd) -> list[Ids]:
        max_tokens = bundle.manifest.geometry.max_tokens
        generator = Generator(rows_of, back_end, device=opened.device, max_tokens=max_tokens)
        return [greedy(generator, prompt, end=spec.end_token_id, most=most) for prompt in prompts]

    adapter = run.adapter_path
    ours = answers_of(adapted_back_end(opened.checkpoint, bundle, adapter, dtype=torch.float32, device=opened.device))
    whole = load_model(opened.checkpoint, task=spec.task, dtype=torch.float32, labels=spec.labels).model
    merged = BackEnd(merge(whole, adapter), bundle.manifest.geometry.split_layer)
    theirs = answers_of(merged)
    same = [same_tokens(one, other) for one, other in zip(ours, theirs, strict=True)]
    parted = [
        gap_at(merged, rows_of, (*prompt, *answer[:until]), answer[until])
        for prompt, answer, until in zip(prompts, ours, same, strict=True)
        if until < len(answer)
    ]
    return Answers(tokens=tuple(map(len, ours)), same=tuple(same), widest_gap=max(parted, default=0.0))


def greedy(generator: Generator, prompt: Ids, *, end: int | None, most: int) -> Ids:
    """The likeliest token again and again, with the one that ends the text if it comes."""
    items = list(generator.tokens(prompt, Ending(max_new_tokens=most, end_token_id=end)))
    ended = (end,) if end is not None and items[-1] is StopReason.END_TOKEN else ()
    return (*(item for item in items if isinstance(item, int)), *ended)


def same_tokens(one: Ids, other: Ids) -> int:
    """Tokens before the first difference."""
    pairs = enumerate(zip_longest(one, other))
    return next((place for place, (ours, theirs) in pairs if ours != theirs), len(one))


def gap_at(back_end: BackEnd, rows_of: RowsOf, ids: Ids, token: int) -> float:
    """By how much the likeliest token after these beats another one, in logits."""
    logits = all_logits(back_end, rows_of, ids)[-1]
    return float(logits.max() - logits[token])


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
