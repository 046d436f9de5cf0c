"""Scores: how good a back end is on samples whose answers are known."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from sf_contract.activations import NO_TARGET
from sf_model.back import BackEnd
from sf_server.store.store import Store
from sf_server.store.stored import SampleInfo, StoredSample
from sf_server.training.batch_tensors import BatchTensors, make_batch
from sf_server.training.objective import judge


@dataclass(slots=True)
class Tally:
    """Sums over targets: samples for classification, completion tokens for causal-lm."""

    targets: int = 0
    hits: int = 0
    loss_sum: float = 0.0

    @property
    def accuracy(self) -> float:
        """Part of targets whose most likely answer is right."""
        return self.hits / max(self.targets, 1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy per target in nats."""
        return self.loss_sum / max(self.targets, 1)


@dataclass(slots=True)
class Score:
    """Tally of all samples, and by device; `floor` is the accuracy of always giving the commonest answer."""

    whole: Tally = field(default_factory=Tally)
    by_device: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    answers: Counter[int] = field(default_factory=Counter)
    samples: int = 0

    @property
    def floor(self) -> float:
        """Accuracy of always giving the commonest answer."""
        return max(self.answers.values(), default=0) / max(self.whole.targets, 1)

    def as_dict(self) -> dict[str, object]:
        """Plain numbers, for JSON."""
        return {
            "samples": self.samples,
            "targets": self.whole.targets,
            "accuracy": self.whole.accuracy,
            "loss": self.whole.loss,
            "perplexity": math.exp(min(self.whole.loss, 50.0)),
            "floor": self.floor,
            "by_device": {
                name: {"targets": tally.targets, "accuracy": tally.accuracy, "loss": tally.loss}
                for name, tally in sorted(self.by_device.items())
            },
        }

    def one_line(self) -> str:
        """For the person watching."""
        return f"accuracy {self.whole.accuracy:.1%}, loss {self.whole.loss:.4f} on {self.samples} samples"


def score_samples(
    back_end: BackEnd, store: Store, infos: Sequence[SampleInfo], *, device: torch.device, max_tokens: int
) -> Score:
    """Score on samples of a store, shortest first so that little is padded."""
    by_length = sorted(infos, key=lambda info: (info.tokens, info.seq))
    batches = (store.load([info.seq for info in group]) for group in batches_by_tokens(by_length, max_tokens))
    return score_batches(back_end, batches, device=device)


def score_batches(back_end: BackEnd, batches: Iterable[Sequence[StoredSample]], *, device: torch.device) -> Score:
    """Score on batches of samples with known answers."""
    score = Score()
    back_end.model.train(False)
    for samples in batches:
        _add(score, back_end, samples, make_batch(samples, back_end, device))
    return score


def batches_by_tokens(infos: Sequence[SampleInfo], max_tokens: int) -> Iterator[list[SampleInfo]]:
    """Groups of at most `max_tokens` padded tokens, in order; lengths must not fall."""
    group: list[SampleInfo] = []
    for info in infos:
        if group and (len(group) + 1) * info.tokens > max_tokens:
            yield group
            group = []
        group.append(info)
    if group:
        yield group


@torch.no_grad()
def _add(score: Score, back_end: BackEnd, samples: Sequence[StoredSample], batch: BatchTensors) -> None:
    logits = back_end(batch.rows, batch.mask)
    for index, sample in enumerate(samples):
        labels = batch.labels[index]
        outcome = judge(logits[index], labels)
        counted = labels != NO_TARGET
        hits = int((outcome.predictions == labels)[counted].sum())
        for tally in (score.whole, score.by_device[sample.device]):
            tally.targets += outcome.targets
            tally.hits += hits
            tally.loss_sum += float(outcome.loss_sum)
        score.answers.update(labels[counted].reshape(-1).tolist())
        score.samples += 1
