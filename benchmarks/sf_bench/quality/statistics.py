"""Paired differences of accuracy and how far to trust them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Hits = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_TAIL_STEPS = 20_000


HOW = """A pair is compared on the same validation samples and seeds; a seed fixes the training samples, the order they arrive
in and all new weights, for every arm alike. The mean is over seeds. Interval over samples: per validation sample the difference
(right = 100, wrong = 0 points) is averaged over the seeds; Student's 95 % interval of the mean of these values. Interval
over seeds: Student's 95 % interval of the mean of the seeds' differences."""


class Interval(msgspec.Struct, frozen=True):
    """A 95 % interval in points of accuracy, from `n` independent values."""

    low: float
    high: float
    n: int


class Paired(msgspec.Struct, frozen=True):
    """An arm against a reference on the same validation samples and seeds, in points of accuracy (1 point = 1 %).

    Attributes:
        by_seed: difference of each seed.
        mean: their mean.
        over_samples: t interval over validation samples of the seed-averaged difference of each sample. It says how far the
            mean would stray with other validation texts; the trained weights are taken as given.
        over_seeds: t interval over the seeds' differences. It says how far it would stray with other training phrases, orders
            and initial weights; None for a single seed.
        only_arm: pairs of seed and sample that the arm got right and the reference did not (with parts: more often).
        only_reference: the reverse.
    """

    by_seed: tuple[float, ...]
    mean: float
    over_samples: Interval | None
    over_seeds: Interval | None
    only_arm: int
    only_reference: int


class RelativeLoss(msgspec.Struct, frozen=True):
    """Loss of an arm against a reference on the same held-out texts and seeds.

    Attributes:
        arm, reference: nats per target, over all seeds and texts.
        by_seed, mean: how much larger the arm's is, in percent of the reference's.
        over_texts: 95 % interval of the mean over the choice of texts; the trained weights are taken as given.
    """

    arm: float
    reference: float
    by_seed: tuple[float, ...]
    mean: float
    over_texts: Interval | None


def compare(arm: Hits, reference: Hits) -> Paired:
    """Compare hits, bool `[seeds, samples]` each, row by row of the same seed and column by column of the same sample."""
    return compare_scores(arm.astype(np.float64), reference.astype(np.float64))


def compare_scores(arm: Numbers, reference: Numbers) -> Paired:
    """The same for parts of one `[seeds, samples]`, such as the part of the front ends behind which a sample is right."""
    differences = 100.0 * (arm - reference)
    by_seed = differences.mean(axis=1)
    return Paired(
        by_seed=tuple(by_seed.tolist()),
        mean=float(by_seed.mean()),
        over_samples=t_interval(differences.mean(axis=0)),
        over_seeds=t_interval(by_seed),
        only_arm=int((arm > reference).sum()),
        only_reference=int((reference > arm).sum()),
    )


def t_interval(values: Numbers) -> Interval | None:
    """Student's 95 % interval of the mean of independent values; None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    reach = t_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    mean = float(values.mean())
    return Interval(low=mean - reach, high=mean + reach, n=n)


def t_quantile(freedom: int) -> float:
    """The t for which Student's distribution with `freedom` degrees of freedom holds 95 % between -t and t.

    With x = sqrt(freedom) tan(u) the density becomes a constant times cos(u) ** (freedom - 1), which is summed by the
    midpoint rule over 0 <= u < pi/2 until it holds 95 % of the whole.
    """
    step = math.pi / 2 / _TAIL_STEPS
    middles = (np.arange(_TAIL_STEPS) + 0.5) * step
    parts = np.cumsum(np.cos(middles) ** (freedom - 1))
    angle = np.interp(CONFIDENCE, parts / parts[-1], middles + step / 2)
    return math.sqrt(freedom) * math.tan(float(angle))


def relative_losses(
    arm: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], targets: Sequence[int]
) -> RelativeLoss:
    """How much larger the arm's loss per target is than the reference's, in percent of the reference's.

    The interval is that of a ratio of sums (linearised: Cochran, Sampling Techniques, 6.4): with d_i the seed-averaged
    difference of the loss sums of text i, t interval of the mean of d_i - ratio * r_i, divided by the mean of r_i.

    Args:
        arm, reference: loss sums `[seeds, texts]`.
        targets: of each text.
    """
    ours, theirs = np.array(arm, dtype=np.float64), np.array(reference, dtype=np.float64)
    by_seed = 100.0 * (ours.sum(axis=1) / theirs.sum(axis=1) - 1.0)
    summed = theirs.mean(axis=0)
    ratio = float((ours.mean(axis=0) - summed).sum() / summed.sum())
    left = t_interval(100.0 * (ours.mean(axis=0) - summed - ratio * summed) / summed.mean())
    mean = 100.0 * ratio
    return RelativeLoss(
        arm=float(ours.sum() / (len(ours) * sum(targets))),
        reference=float(theirs.sum() / (len(theirs) * sum(targets))),
        by_seed=tuple(by_seed.tolist()),
        mean=mean,
        over_texts=None if left is None else Interval(low=mean + left.low, high=mean + left.high, n=left.n),
    )
