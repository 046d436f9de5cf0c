"""Which device holds which sample. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sf_contract.samples import TokenizedSample


def deal_in_turn(samples: Sequence[TokenizedSample], devices: int) -> list[int]:
    """A device for every sample, one after the other: each device gets the same mixture."""
    return [index % devices for index in range(len(samples))]


def deal_by_class(samples: Sequence[TokenizedSample], devices: int, *, classes: int) -> list[int]:
    """A device for every sample, so that a device holds samples of one class only.

    Device d holds class d modulo `classes`; the devices of one class take its samples in turn.

    Raises:
        ValueError: the devices cannot be divided among the classes, or a sample has no label.
    """
    if devices % classes:
        raise ValueError(f"{devices} devices cannot be divided among {classes} classes")
    seen: Counter[int] = Counter()
    holders = []
    for sample in samples:
        if sample.label is None:
            raise ValueError("a sample without a label belongs to no class")
        holders.append(sample.label + classes * (seen[sample.label] % (devices // classes)))
        seen[sample.label] += 1
    return holders
