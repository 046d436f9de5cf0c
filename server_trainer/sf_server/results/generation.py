"""Completing prompts: front end and trained back end, token by token.

Every row is computed once. The rows of a prompt come from one run of the front end; when a token is chosen, the front end runs
on everything so far and its last row is taken, since the graph of a bundle keeps no state. The back end does keep keys and
values, so each of its layers sees a token once. For n tokens that is n runs of the few layers below the cut over up to n
tokens, and n steps of all others.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

import torch
from transformers import DynamicCache, PretrainedConfig

from sf_contract.samples import UnusableRecord
from sf_model.back import BackEnd
from sf_server.results.text_front import RowsOf
from sf_server.training.batch_tensors import decode_to_tensor

_MAX_CACHE_GAP: Final = {True: 1e-3, False: 0.1}
"""Relative, for fp32 and for shorter dtypes: steps of one token take other kernels, which differ by rounding."""
_PROBE_TOKENS: Final = (5, 3)


class StopReason(enum.StrEnum):
    """Why a completion ends."""

    END_TOKEN = "end-token"
    STOP_TEXT = "stop-text"
    MAX_NEW_TOKENS = "max-new-tokens"
    MAX_TOKENS = "max-tokens"
    """The bundle allows no longer sequence."""


@dataclass(frozen=True, slots=True)
class Choosing:
    """How the next token is chosen.

    Attributes:
        temperature: logits are divided by it and a token is drawn; 0 takes the likeliest.
        top_p: drawn among the likeliest tokens that together have this probability (nucleus sampling, arXiv 1904.09751).
        seed: of the drawing; the same for every prompt.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """When a completion ends.

    Attributes:
        max_new_tokens: at most so many tokens.
        end_token_id: this token ends it and is not part of it.
        stop: each of these texts ends it and is not part of it.
    """

    max_new_tokens: int
    end_token_id: int | None = None
    stop: tuple[str, ...] = ()


class Decoder(Protocol):
    """Token ids to text; `BundleTokenizer` is one."""

    def decode(self, token_ids: list[int]) -> str:
        """Text without special tokens."""


class Generator:
    """Completes prompts.

    Args:
        rows_of: the front end.
        max_tokens: longest sequence of the bundle.
    """

    def __init__(self, rows_of: RowsOf, back_end: BackEnd, *, device: torch.device, max_tokens: int) -> None:
        self._rows_of = rows_of
        self._back_end = back_end
        self._device = device
        self._max_tokens = max_tokens
        self.is_cached = _can_be_cached(back_end, device)

    def tokens(
        self, prompt: Sequence[int], ending: Ending, choosing: Choosing = Choosing()
    ) -> Iterator[int | StopReason]:
        """Tokens one after another, as they are chosen; the last item says why there are no more.

        Raises:
            UnusableRecord: the prompt is empty, or leaves no room for a token.
        """
        if not 0 < len(prompt) < self._max_tokens:
            raise UnusableRecord(f"the prompt has {len(prompt)} tokens; 1 to {self._max_tokens - 1} are possible")
        chance = torch.Generator().manual_seed(choosing.seed)
        steps = _Steps(self._back_end, is_cached=self.is_cached)
        token_ids = list(prompt)
        rows = decode_to_tensor(self._rows_of(token_ids))
        for number in range(ending.max_new_tokens):
            logits = steps.next_logits(rows.to(self._device)).float().cpu()
            token = choose_token(logits, choosing, chance)
            if token == ending.end_token_id:
                yield StopReason.END_TOKEN
                return
            token_ids.append(token)
            yield token
            if len(token_ids) >= self._max_tokens:
                yield StopReason.MAX_TOKENS
                return
            if number + 1 < ending.max_new_tokens:
                rows = decode_to_tensor(self._rows_of(token_ids).part(len(token_ids) - 1, len(token_ids)))
        yield StopReason.MAX_NEW_TOKENS


class Completion:
    """The text of a completion while it grows.

    Attributes:
        text: what is certain so far: nothing of it can still turn out to belong to a stop text.
        token_ids: all tokens so far.
        reason: why it ended; None while it grows.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str]) -> None:
        self._decoder = decoder
        self._stop = tuple(text for text in stop if text)
        self.text = ""
        self.token_ids: list[int] = []
        self.reason: StopReason | None = None

    def add(self, item: int | StopReason) -> str:
        """Take the next item; the text that became certain with it."""
        if isinstance(item, StopReason):
            self.reason = item
            return self._advance(self._decoder.decode(self.token_ids))
        self.token_ids.append(item)
        whole = self._decoder.decode(self.token_ids)
        places = [place for text in self._stop if (place := whole.find(text)) >= 0]
        if places:
            self.reason = StopReason.STOP_TEXT
            return self._advance(whole[: min(places)])
        return self._advance(whole[: len(whole) - self._uncertain(whole)])

    def _advance(self, certain: str) -> str:
        """A piece of text, unless the tokenizer now reads what is already out in another way."""
        if not certain.startswith(self.text):
            certain = certain if self.reason is not None else self.text
        new = certain[len(self.text) :]
        self.text = certain
        return new

    def _uncertain(self, whole: str) -> int:
        """Characters at the end that may be half a character, or the beginning of a stop text."""
        if whole.endswith("\ufffd"):
            return len(whole) - len(whole.rstrip("\ufffd"))
        return max(
            (n for text in self._stop for n in range(1, min(len(text), len(whole) + 1)) if whole.endswith(text[:n])),
            default=0,
        )


def complete(
    generator: Generator, prompt: Sequence[int], completion: Completion, ending: Ending, choosing: Choosing = Choosing()
) -> Iterator[str]:
    """Pieces of a completion's text as they become certain; afterwards the completion is whole."""
    for item in generator.tokens(prompt, ending, choosing):
        yield completion.add(item)
        if completion.reason is not None:
            return


def choose_token(logits: torch.Tensor, choosing: Choosing, chance: torch.Generator) -> int:
    """The next token from logits `[vocabulary]`."""
    if choosing.temperature == 0:
        return int(logits.argmax())
    likely, tokens = torch.softmax(logits / choosing.temperature, dim=-1).sort(descending=True, stable=True)
    before = likely.cumsum(-1) - likely
    likely = likely * (before < choosing.top_p)  # the first token is always among them
    return int(tokens[torch.multinomial(likely, 1, generator=chance)])


class _Steps:
    """The back end over one growing sequence."""

    def __init__(self, back_end: BackEnd, *, is_cached: bool) -> None:
        self._back_end = back_end
        self._cache = _new_cache(back_end) if is_cached else None
        self._rows: torch.Tensor | None = None

    @torch.no_grad()
    def next_logits(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits `[vocabulary]` after further rows `[new tokens, hidden]`."""
        if self._cache is not None:
            return self._back_end.continue_with(rows[None], self._cache)[0, -1]
        self._rows = rows if self._rows is None else torch.cat([self._rows, rows])
        mask = torch.ones(1, len(self._rows), dtype=torch.int64, device=rows.device)
        logits: torch.Tensor = self._back_end(self._rows[None], mask)
        return logits[0, -1]


@torch.no_grad()
def _can_be_cached(back_end: BackEnd, device: torch.device) -> bool:
    """Whether going on from kept keys and values gives this model what running it on everything gives."""
    first, more = _PROBE_TOKENS
    rows = torch.randn(first + more, back_end.hidden, generator=torch.Generator().manual_seed(0)).to(device)
    mask = torch.ones(1, len(rows), dtype=torch.int64, device=device)
    wanted = back_end(rows[None], mask)[0, -1].float()
    try:
        steps = _Steps(back_end, is_cached=True)
        found = steps.next_logits(rows[:first])
        for index in range(first, first + more):
            found = steps.next_logits(rows[index : index + 1])
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # the model's own code, run in a way that not every architecture foresees
    gap = float((found.float() - wanted).norm() / wanted.norm().clamp(min=1e-6))
    return gap < _MAX_CACHE_GAP[next(back_end.parameters()).dtype is torch.float32]


def _new_cache(back_end: BackEnd) -> DynamicCache:
    return DynamicCache(config=cast(PretrainedConfig, back_end.model.config))
