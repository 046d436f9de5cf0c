"""Loss and hits of a batch, for both tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from sf_contract.activations import NO_TARGET


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


def judge(logits: torch.Tensor, labels: torch.Tensor) -> Outcome:
    """Compare logits `[..., classes]` with labels `[...]`; rows labelled `NO_TARGET` do not count."""
    flat = logits.reshape(-1, logits.shape[-1]).float()
    loss_sum = cross_entropy(flat, labels.reshape(-1), ignore_index=NO_TARGET, reduction="sum")
    targets = int((labels != NO_TARGET).sum())
    return Outcome(loss_sum=loss_sum, targets=targets, predictions=logits.detach().argmax(-1))
