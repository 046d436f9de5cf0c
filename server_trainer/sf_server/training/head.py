"""The head of a causal language model, for rows that have a target only, and a loss that never holds all logits.

A head multiplies every row by the whole vocabulary, and prompts and padding have no targets. So target rows are gathered
before the head; and where nothing but the loss comes after it, logits live for some rows at a time, with the gradient
of the rows computed while they are there (as in Liger Kernel, arXiv 2410.10989).
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch import nn

from sf_model.back import Segment
from sf_model.packed import plain_model, probe_rows, relative_gap

LOGITS_AT_ONCE: Final = {"cpu": 1 << 23, "cuda": 1 << 26}
"""fp32 numbers: 32 MB where caches count, 256 MB where large products do."""
_PROBE_LENGTHS: Final = (7, 3, 5)
_MAX_GAP: Final = {True: 1e-4, False: 0.05}
"""Relative, for fp32 and for shorter dtypes: other shapes take other kernels, so results differ by rounding."""


class HeadKind(enum.Enum):
    """How a model's head may be computed."""

    CHUNKED = "target rows only, a few at a time"
    GATHERED = "target rows only"
    ORDINARY = "all rows"


@dataclass(frozen=True, slots=True, eq=False)
class TargetLosses:
    """What was computed of `n` targets.

    Attributes:
        loss_sum: scalar tensor, cross-entropy in nats times weight, summed; carries the gradient.
        losses: float32 `[n]`, cross-entropy without weights, without gradient.
        predictions: int64 `[n]`, the most likely answers; empty when they were not asked for.
    """

    loss_sum: torch.Tensor
    losses: torch.Tensor
    predictions: torch.Tensor


@dataclass(slots=True, eq=False)
class _Visit:
    """One run through the head: the places of the rows that are wanted, and what was seen there."""

    places: torch.Tensor
    skip: bool
    rows: torch.Tensor | None = field(default=None)

    def enter(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[torch.Tensor]:
        self.rows = args[0].flatten(0, 1).index_select(0, self.places)
        return (self.rows[:0] if self.skip else self.rows,)


class TargetHead:
    """Computes target rows of a segment's batches; tries at the start what its model allows.

    Attributes:
        kind: how.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._head = cast(nn.Module | None, plain_model(segment).get_output_embeddings())  # type: ignore[no-untyped-call]
        self.kind = self._find_kind()

    def losses(
        self,
        rows: torch.Tensor,
        mask: torch.Tensor,
        *,
        places: torch.Tensor,
        answers: torch.Tensor,
        weights: torch.Tensor | None,
        predict: bool,
    ) -> TargetLosses:
        """Losses of target rows.

        Args:
            rows, mask: a padded batch, `[batch, tokens, hidden]` and `[batch, tokens]`.
            places: int64 `[n]`, places of the target rows, counted through the batch.
            answers: int64 `[n]`, their targets.
            weights: float32 `[n]`, or None for 1.
            predict: find the most likely answers too.
        """
        if self.kind is HeadKind.CHUNKED:
            head = cast(nn.Linear, self._head)
            hidden = self._hidden_rows(rows, mask, places)
            wanted = torch.ones_like(answers, dtype=torch.float32) if weights is None else weights
            found = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
                hidden, head.weight, head.bias, answers, wanted, predict
            )
            return TargetLosses(*found)
        if self.kind is HeadKind.GATHERED:
            return losses_of(self._gathered_logits(rows, mask, places), answers, weights)
        return losses_of(self._segment(rows, mask).flatten(0, 1)[places], answers, weights)

    def _hidden_rows(self, rows: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        with self._visited(_Visit(places, skip=True)) as visit:
            self._segment(rows, mask)
        return cast(torch.Tensor, visit.rows)

    def _gathered_logits(self, rows: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        with self._visited(_Visit(places, skip=False)):
            logits: torch.Tensor = self._segment(rows, mask)
        return logits

    @contextmanager
    def _visited(self, visit: _Visit) -> Iterator[_Visit]:
        handle = cast(nn.Module, self._head).register_forward_pre_hook(visit.enter)
        try:
            yield visit
        finally:
            handle.remove()

    @torch.no_grad()
    def _find_kind(self) -> HeadKind:
        if self._head is None:
            return HeadKind.ORDINARY
        was_training = self._segment.model.training
        self._segment.model.eval()
        try:
            return self._tried_kind()
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # a model that wants all its logits
            return HeadKind.ORDINARY
        finally:
            self._segment.model.train(was_training)

    def _tried_kind(self) -> HeadKind:
        rows, mask = self._segment.pad(probe_rows(self._segment, _PROBE_LENGTHS))
        places = mask.flatten().nonzero().squeeze(1)[::2]
        wanted = self._segment(rows, mask).flatten(0, 1)[places]
        limit = _MAX_GAP[wanted.dtype is torch.float32]
        found = self._gathered_logits(rows, mask, places)
        if found.shape != wanted.shape or not relative_gap(found, wanted) < limit:
            return HeadKind.ORDINARY
        head = self._head
        if type(head) is not nn.Linear or head.weight.requires_grad:
            return HeadKind.GATHERED
        alone = head(self._hidden_rows(rows, mask, places))
        # Whatever follows the head, such as a scale or a soft cap, moves logits by much more than rounding does.
        return HeadKind.CHUNKED if relative_gap(alone, wanted) < limit / 10 else HeadKind.GATHERED


def losses_of(logits: torch.Tensor, answers: torch.Tensor, weights: torch.Tensor | None) -> TargetLosses:
    """Losses of logits `[n, classes]` that are there already."""
    losses = nn.functional.cross_entropy(logits.float(), answers, reduction="none")
    loss_sum = losses.sum() if weights is None else weights @ losses
    return TargetLosses(loss_sum=loss_sum, losses=losses.detach(), predictions=logits.detach().argmax(-1))


class _ChunkedLoss(torch.autograd.Function):
    """Sum of weighted cross-entropies of `rows @ weight.T + bias`; the gradient of the rows is computed on the way."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd takes no keywords
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        answers: torch.Tensor,
        weights: torch.Tensor,
        predict: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        size = max(1, LOGITS_AT_ONCE.get(rows.device.type, 1 << 23) // len(weight))
        losses = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        predictions = torch.empty(len(rows) if predict else 0, dtype=torch.int64, device=rows.device)
        gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            logits = _logits(rows[part], weight, bias)
            if predict:
                predictions[part] = logits.argmax(1)
            losses[part] = _losses_and_odds(logits, answers[part])
            if gradient is not None:
                logits[torch.arange(len(logits), device=rows.device), answers[part]] -= 1
                gradient[part] = logits.mul_(weights[part, None]).to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses, predictions)
        return weights @ losses, losses, predictions

    @staticmethod
    def backward(
        ctx: Any, outer: torch.Tensor, *_: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * outer.to(gradient.dtype), None, None, None, None, None


def _logits(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return (rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)).float()


def _losses_and_odds(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Cross-entropies `[n]`; the logits `[n, classes]` become probabilities in place."""
    of_answers = logits.gather(1, answers[:, None])
    peaks = logits.amax(1, keepdim=True)
    sums = logits.sub_(peaks).exp_().sum(1, keepdim=True)
    logits.div_(sums)
    return (peaks + sums.log() - of_answers).squeeze(1)
