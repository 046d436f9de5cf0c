"""Loss and hits of a batch, for both tasks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import cross_entropy

from sf_contract.activations import NO_TARGET
from sf_model.back import Segment
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.head import TargetHead, losses_of


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What the logits of a batch say.

    Attributes:
        loss_sum: scalar tensor, cross-entropy in nats summed over the targets.
        targets: number of targets: samples for classification, completion tokens for causal-lm.
        predictions: int64, most likely class per sample `[batch]` or token per row `[batch, tokens]`.
    """

    loss_sum: torch.Tensor
    targets: int
    predictions: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        """Mean cross-entropy per target: what an ordinary Transformers class reports as its loss."""
        return self.loss_sum / max(self.targets, 1)


def judge(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> Outcome:
    """Compare logits `[batch, ..., classes]` with labels `[batch, ...]`; rows labelled `NO_TARGET` do not count.

    `weights` (`[batch]`) multiply the losses of a sample's targets in the sum; the number of targets stays what it is.
    """
    flat = logits.reshape(-1, logits.shape[-1]).float()
    if weights is None:
        loss_sum = cross_entropy(flat, labels.reshape(-1), ignore_index=NO_TARGET, reduction="sum")
    else:
        losses = cross_entropy(flat, labels.reshape(-1), ignore_index=NO_TARGET, reduction="none")
        loss_sum = weights @ losses.reshape(len(weights), -1).sum(dim=1)
    targets = int((labels != NO_TARGET).sum())
    return Outcome(loss_sum=loss_sum, targets=targets, predictions=logits.detach().argmax(-1))


@dataclass(frozen=True, slots=True, eq=False)
class TargetOutcome:
    """What a model says about the targets of a batch: its samples, or for causal-lm the completion tokens of all of them.

    Attributes:
        loss_sum: scalar tensor, cross-entropy in nats times the sample's weight, summed; carries the gradient.
        losses: float32 `[targets]`, cross-entropy without weights.
        predictions: int64 `[targets]`, the most likely answers; empty when they were not asked for.
        answers: int64 `[targets]`, the right ones.
        samples: int64 `[targets]`, number within the batch of the sample that each target belongs to.
    """

    loss_sum: torch.Tensor
    losses: torch.Tensor
    predictions: torch.Tensor
    answers: torch.Tensor
    samples: torch.Tensor

    @property
    def targets(self) -> int:
        """Number of targets."""
        return len(self.answers)


class Objective:
    """A back end seen through the targets of its batches; for causal-lm the head is computed for these rows only."""

    def __init__(self, back_end: Segment) -> None:
        self._back_end = back_end

    @cached_property
    def head(self) -> TargetHead:
        """The head for target rows; what it may do is tried when it is needed first."""
        return TargetHead(self._back_end)

    def outcome(self, batch: BatchTensors, *, predict: bool = False) -> TargetOutcome:
        """Losses of a batch, and with `predict` the answers."""
        if batch.labels.ndim == 1:
            found = losses_of(self._back_end(batch.rows, batch.mask), batch.labels, batch.weights)
            samples = torch.arange(len(batch.labels), device=batch.labels.device)
            return TargetOutcome(found.loss_sum, found.losses, found.predictions, batch.labels, samples)
        labels = batch.labels.flatten()
        places = (labels != NO_TARGET).nonzero().squeeze(1)
        answers, samples = labels[places], places // batch.labels.shape[1]
        weights = None if batch.weights is None else batch.weights[samples]
        losses = self.head.losses(
            batch.rows, batch.mask, places=places, answers=answers, weights=weights, predict=predict
        )
        return TargetOutcome(losses.loss_sum, losses.losses, losses.predictions, answers, samples)
