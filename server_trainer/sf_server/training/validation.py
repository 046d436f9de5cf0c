"""Scores: how good a back end is on samples whose answers are known."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

from sf_model.back import Segment
from sf_server.store.stored import SampleInfo, StoredSample
from sf_server.training.batch_tensors import BatchTensors, make_batch
from sf_server.training.feed import SampleSource
from sf_server.training.objective import Objective


@dataclass(slots=True)
class Tally:
    """Sums over targets: samples for classification, completion tokens for causal-lm."""

    targets: int = 0
    hits: int = 0
    loss_sum: float = 0.0
    confusion: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How often a class (first) was taken for one (second); empty for causal-lm."""

    @property
    def accuracy(self) -> float:
        """Part of targets whose most likely answer is right."""
        return self.hits / max(self.targets, 1)

    @property
    def loss(self) -> float:
        """Mean cross-entropy per target in nats."""
        return self.loss_sum / max(self.targets, 1)

    @property
    def perplexity(self) -> float:
        """Exponential of the loss, at most e to the 50th."""
        return math.exp(min(self.loss, 50.0))

    def add(self, other: Tally) -> None:
        """Count what another one has counted too."""
        self.targets += other.targets
        self.hits += other.hits
        self.loss_sum += other.loss_sum
        self.confusion.update(other.confusion)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Precision, recall and F1 of one class (van Rijsbergen 1979); what would be divided by zero is 0.

    `samples` is how often it is the right answer.
    """

    samples: int
    precision: float
    recall: float
    f1: float


def class_scores(confusion: Mapping[tuple[int, int], int]) -> dict[int, ClassScore]:
    """Scores of every class that is a right or a given answer, by its index."""
    right: Counter[int] = Counter()
    given: Counter[int] = Counter()
    for (answer, prediction), times in confusion.items():
        right[answer] += times
        given[prediction] += times
    return {
        index: ClassScore(
            samples=right[index],
            precision=confusion.get((index, index), 0) / max(given[index], 1),
            recall=confusion.get((index, index), 0) / max(right[index], 1),
            f1=2 * confusion.get((index, index), 0) / (right[index] + given[index]),
        )
        for index in sorted({*right, *given})
    }


def macro_f1(confusion: Mapping[tuple[int, int], int]) -> float:
    """Mean F1 of the classes that are a right or a given answer, each counting the same; 0 without any."""
    scores = class_scores(confusion).values()
    return sum(score.f1 for score in scores) / max(len(scores), 1)


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

    def add(self, other: Score) -> None:
        """Count what another one has counted too."""
        self.whole.add(other.whole)
        for name, tally in other.by_device.items():
            self.by_device[name].add(tally)
        self.answers.update(other.answers)
        self.samples += other.samples

    def as_dict(self, labels: Sequence[str] = ()) -> dict[str, object]:
        """Plain numbers, for JSON; with the names of the classes, also the scores of each."""
        found: dict[str, object] = {} if not self.whole.confusion else {"f1_macro": macro_f1(self.whole.confusion)}
        if labels and self.whole.confusion:
            scores = class_scores(self.whole.confusion)
            found["classes"] = {labels[index]: asdict(score) for index, score in scores.items()}
        return found | {
            "samples": self.samples,
            "targets": self.whole.targets,
            "accuracy": self.whole.accuracy,
            "loss": self.whole.loss,
            "perplexity": self.whole.perplexity,
            "floor": self.floor,
            "by_device": {
                name: {
                    "targets": tally.targets,
                    "accuracy": tally.accuracy,
                    "loss": tally.loss,
                    "perplexity": tally.perplexity,
                }
                | ({"f1_macro": macro_f1(tally.confusion)} if tally.confusion else {})
                for name, tally in sorted(self.by_device.items())
            },
        }

    def one_line(self) -> str:
        """For the person watching."""
        f1 = f", macro-F1 {macro_f1(self.whole.confusion):.3f}" if self.whole.confusion else ""
        return f"accuracy {self.whole.accuracy:.1%}{f1}, loss {self.whole.loss:.4f} on {self.samples} samples"


def score_samples(
    back_end: Segment,
    store: SampleSource,
    infos: Sequence[SampleInfo],
    *,
    device: torch.device,
    max_tokens: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Score:
    """Score on samples of a store, shortest first so that little is padded; once `stopped`, what is left is left out."""
    by_length = sorted(infos, key=lambda info: (info.tokens, info.seq))
    groups = batches_by_tokens(by_length, max_tokens)
    batches = (
        store.load([info.seq for info in group]) for group in itertools.takewhile(lambda _: not stopped(), groups)
    )
    return score_batches(back_end, batches, device=device)


def score_batches(back_end: Segment, batches: Iterable[Sequence[StoredSample]], *, device: torch.device) -> Score:
    """Score on batches of samples with known answers."""
    score = Score()
    objective = Objective(back_end)
    back_end.model.train(False)
    for samples in batches:
        _add(score, objective, samples, make_batch(samples, back_end, device))
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
def _add(score: Score, objective: Objective, samples: Sequence[StoredSample], batch: BatchTensors) -> None:
    outcome = objective.outcome(batch, predict=True)
    is_class = batch.labels.ndim == 1
    hits = outcome.predictions == outcome.answers
    for index, sample in enumerate(samples):
        own = outcome.samples == index
        for tally in (score.whole, score.by_device[sample.device]):
            tally.targets += int(own.sum())
            tally.hits += int(hits[own].sum())
            tally.loss_sum += float(outcome.losses[own].sum())
            if is_class:
                tally.confusion[int(outcome.answers[index]), int(outcome.predictions[index])] += 1
        score.answers.update(outcome.answers[own].tolist())
        score.samples += 1
