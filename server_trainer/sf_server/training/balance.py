"""How much each sample counts, so that a device or a class with many samples does not drown the others. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from sf_server.store.stored import SampleInfo

Balance = Literal["device", "class", "none"]
Weights = np.ndarray[Any, np.dtype[np.float32]]

LARGEST_RATIO: Final = 10.0
"""No sample counts more than so many times as much as another one, however rare its device or class is: a batch that happens
to hold such a sample would otherwise be that sample alone."""


def sample_weights(samples: Sequence[SampleInfo], balance: Balance) -> Weights:
    """What the loss of each sample is multiplied by, `[samples]`, in their order.

    A sample of a group (its device, or its class) with `n` samples weighs `c / max(n, n_max / LARGEST_RATIO)`, where
    `n_max` is the size of the largest group and `c` makes the mean over all these samples 1. So every group that has at
    least a tenth of the largest one's samples counts as much as any other one in sum (the "balanced" class weights of
    scikit-learn), and the size of a step stays what it was.
    """
    if balance == "none" or not samples:
        return np.ones(len(samples), dtype=np.float32)
    groups = [sample.device if balance == "device" else sample.label for sample in samples]
    sizes = Counter(groups)
    least = max(sizes.values()) / LARGEST_RATIO
    raw = {group: 1 / max(size, least) for group, size in sizes.items()}
    scale = len(samples) / sum(raw[group] * size for group, size in sizes.items())
    return np.fromiter((raw[group] * scale for group in groups), dtype=np.float32, count=len(groups))


class WindowWeights:
    """The weights of a window's samples, found by `seq`.

    Args:
        samples: of the window, in `seq` order.
    """

    def __init__(self, samples: Sequence[SampleInfo], balance: Balance) -> None:
        counted = () if balance == "none" else samples
        self._is_even = balance == "none"
        self._seqs = np.fromiter((sample.seq for sample in counted), dtype=np.int64, count=len(counted))
        self._weights = sample_weights(counted, balance)

    def of(self, seqs: Sequence[int]) -> Weights | None:
        """Of these samples, in their order; None when all count the same."""
        return None if self._is_even else self._weights[np.searchsorted(self._seqs, seqs)]
