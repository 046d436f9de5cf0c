"""Which samples are trained on, in which order: pure decisions, the same for the same store, seed and position.

The first epoch reads the store in windows, in the order samples arrived, and shuffles inside a window; so training starts
while devices still send. Later epochs read the whole store as one window. A window is a range of `seq`; a position names
the window and the next batch in it, which is all a checkpoint needs to go on exactly where training stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from sf_server.store.stored import SampleInfo

BATCHES_PER_BUCKET = 8
"""Batches that are sorted by length together: enough for little padding, few enough for a fresh mix every epoch."""

FINAL_RATE = 0.1
"""Learning rate at the end of training, as a part of the peak."""


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where training stands.

    Attributes:
        epoch: 1 is the first.
        after_seq: samples up to this `seq` belong to earlier windows of the epoch.
        upto_seq: last `seq` of the current window; equal to `after_seq` when no window is open.
        next_batch: batches of the window that are done.
    """

    epoch: int = 1
    after_seq: int = 0
    upto_seq: int = 0
    next_batch: int = 0

    @property
    def window_is_open(self) -> bool:
        """True when a window has been chosen."""
        return self.upto_seq > self.after_seq

    def open_window(self, upto_seq: int) -> Position:
        """Begin the window that ends with `upto_seq`."""
        return msgspec.structs.replace(self, upto_seq=upto_seq, next_batch=0)

    def batch_done(self) -> Position:
        """One more batch of the window is done."""
        return msgspec.structs.replace(self, next_batch=self.next_batch + 1)

    def window_done(self) -> Position:
        """Go on behind the window."""
        return msgspec.structs.replace(self, after_seq=self.upto_seq, next_batch=0)

    def next_epoch(self) -> Position:
        """Begin the next epoch at the first sample."""
        return Position(epoch=self.epoch + 1)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a batch may hold: so many samples, and so many tokens with its padding. A longer sample goes alone."""

    max_tokens: int
    max_samples: int


def window_size(wanted: int, *, epoch_is_known: bool, pool: bool) -> int | None:
    """Samples of a window; None for all that the epoch has.

    Args:
        wanted: samples that are shuffled together while they arrive.
        epoch_is_known: the first epoch has seen all samples, so later ones need not wait for any.
        pool: False trains on one device after the other, which takes the samples of all of them first.
    """
    return None if epoch_is_known or not pool else wanted


def window_is_ready(
    available: int, *, wanted: int | None, complete: bool, waited_s: float = 0.0, deadline_s: float | None = None
) -> bool:
    """Whether to train on `available` new samples now, or to wait for a fuller window.

    Args:
        wanted: samples of a full window; None: all there will be.
        complete: no more will come.
        waited_s: seconds since training had nothing to do.
        deadline_s: after so many of them it takes what has arrived; None: never.
    """
    if available == 0:
        return False
    is_full = wanted is not None and available >= wanted
    is_late = deadline_s is not None and waited_s >= deadline_s
    return complete or is_full or is_late


def plan_batches(
    samples: Sequence[SampleInfo], *, seed: int, position: Position, budget: Budget, pool: bool = True
) -> list[list[int]]:
    """Batches of `seq` numbers for one window.

    The samples of all devices are pooled and shuffled, sorted by length inside buckets of a few batches so that little is
    padded, cut into batches, and the batches are shuffled. Without `pool` that is done for each device by itself, and
    the devices follow one another in the order of their names: what training is like where nobody pools.
    """
    generator = np.random.default_rng([seed, position.epoch, position.after_seq])
    groups = [samples] if pool else _by_device(samples)
    return [batch for group in groups for batch in _shuffled_batches(group, generator, budget)]


def rest_of_plan(
    batches: Sequence[list[int]], *, next_batch: int, is_done: Callable[[int], bool]
) -> Sequence[list[int]] | None:
    """The batches from `next_batch` on.

    None when those before it are not exactly the samples that are done: then the plan is not the one that was begun,
    because samples were deleted since, or training was resumed with other batch sizes.
    """
    done, rest = batches[:next_batch], batches[next_batch:]
    fits = all(is_done(seq) for batch in done for seq in batch) and not any(
        is_done(seq) for batch in rest for seq in batch
    )
    return rest if fits else None


def learning_rate_factor(*, step: int, warmup_steps: int, progress: float) -> float:
    """Part of the peak learning rate: linear warm-up, and a linear fall to `FINAL_RATE` with progress.

    Args:
        step: 0 for the first step.
        progress: 0 to 1, see `falling_part`.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmup * (1.0 - (1.0 - FINAL_RATE) * progress)


def falling_part(*, done: int, later_done: int, samples: int, expected: int | None, epochs: int) -> float:
    """How much of the part of training is over during which the learning rate falls, 0 to 1.

    The length of training is known from the start where the number of samples was said beforehand, else from the second
    epoch on; so with one epoch and an unknown number of samples the rate never falls.

    Args:
        done: samples trained on, each as often as it was.
        later_done: the same, without the first epoch.
        samples: in the first epoch; 0 while it lasts.
        expected: samples that the first epoch will have, None when nobody knows.
        epochs: of the whole training.
    """
    if expected is not None:
        return min(1.0, done / (max(expected, samples) * epochs))
    later = samples * (epochs - 1)
    return later_done / later if later else 0.0


def _by_device(samples: Sequence[SampleInfo]) -> list[list[SampleInfo]]:
    groups: dict[str, list[SampleInfo]] = {}
    for sample in samples:
        groups.setdefault(sample.device, []).append(sample)
    return [groups[device] for device in sorted(groups)]


def _shuffled_batches(samples: Sequence[SampleInfo], generator: np.random.Generator, budget: Budget) -> list[list[int]]:
    shuffled = [samples[index] for index in generator.permutation(len(samples))]
    bucket = budget.max_samples * BATCHES_PER_BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), bucket):
        by_length = sorted(shuffled[start : start + bucket], key=lambda sample: sample.tokens)
        batches += _cut(by_length, budget)
    return [batches[index] for index in generator.permutation(len(batches))]


def _cut(by_length: Sequence[SampleInfo], budget: Budget) -> list[list[int]]:
    batches: list[list[int]] = []
    current: list[int] = []
    for sample in by_length:
        # Sorted by length, so this sample would be the longest of the batch and sets its padded width.
        is_wide = (len(current) + 1) * sample.tokens > budget.max_tokens
        if current and (len(current) == budget.max_samples or is_wide):
            batches.append(current)
            current = []
        current.append(sample.seq)
    if current:
        batches.append(current)
    return batches
