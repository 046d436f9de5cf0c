"""Which samples are trained on, in which order: pure decisions, the same for the same store, seed and position.

The first epoch reads the store in windows, in the order samples arrived, and shuffles inside a window; so training starts
while devices still send. Later epochs read the whole store as one window. A window is a range of `seq`; a position names
the window and the next batch in it, which is all a checkpoint needs to go on exactly where training stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def window_is_ready(available: int, *, wanted: int, complete: bool) -> bool:
    """Whether to train on `available` new samples now, or to wait for a fuller window."""
    return available > 0 and (complete or available >= wanted)


def plan_batches(
    samples: Sequence[SampleInfo], *, seed: int, position: Position, max_tokens: int, max_samples: int
) -> list[list[int]]:
    """Batches of `seq` numbers for one window.

    All devices' samples are pooled and shuffled, sorted by length inside buckets of a few batches so that little is
    padded, cut into batches of at most `max_samples` samples and `max_tokens` padded tokens (a longer sample goes
    alone), and the batches are shuffled.
    """
    generator = np.random.default_rng([seed, position.epoch, position.after_seq])
    shuffled = [samples[index] for index in generator.permutation(len(samples))]
    bucket = max_samples * BATCHES_PER_BUCKET
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), bucket):
        by_length = sorted(shuffled[start : start + bucket], key=lambda sample: sample.tokens)
        batches += _cut(by_length, max_tokens=max_tokens, max_samples=max_samples)
    return [batches[index] for index in generator.permutation(len(batches))]


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


def _cut(by_length: Sequence[SampleInfo], *, max_tokens: int, max_samples: int) -> list[list[int]]:
    batches: list[list[int]] = []
    current: list[int] = []
    for sample in by_length:
        # Sorted by length, so this sample would be the longest of the batch and sets its padded width.
        if current and (len(current) == max_samples or (len(current) + 1) * sample.tokens > max_tokens):
            batches.append(current)
            current = []
        current.append(sample.seq)
    if current:
        batches.append(current)
    return batches
