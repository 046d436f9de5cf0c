"""What a trained model gets right and wrong, sample by sample."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Score = Annotated[float, Meta(ge=0)]


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Classification: validation samples in the file's order, right or wrong, and the mean cross-entropy in nats."""

    hits: Annotated[tuple[bool, ...], Meta(min_length=1)]
    loss: Score

    @property
    def accuracy(self) -> float:
        """Part that is right."""
        return sum(self.hits) / len(self.hits)


class CompletionLoss(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Causal language modelling: cross-entropy of every held-out completion in nats, and its tokens, in the file's order."""

    loss_sums: Annotated[tuple[Score, ...], Meta(min_length=1)]
    targets: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean per completion token, over all held-out completions together."""
        return sum(self.loss_sums) / sum(self.targets)


class TrainingKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides a cell's result.

    Attributes:
        way: how it is trained.
        rows: ids of the bundles that compute the rows, or `fp32`.
        base_weights_sha256: the base model.
        inputs_sha256: digest of all token ids, labels and targets, of training and validation.
        holders_sha256: digest of who holds which sample.
        training: settings of the training that change what is computed, each as JSON.
    """

    way: str
    rows: tuple[str, ...]
    base_weights_sha256: str
    inputs_sha256: str
    holders_sha256: str
    training: dict[str, str]


class Effort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a training took: optimizer steps, tokens trained on (over all epochs), seconds by the wall clock."""

    steps: int
    tokens: int
    seconds: Score
