"""Instruction counts: what the plugin writes, and what follows from it. Pure."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from sf_contract.errors import MismatchError

CLASSES: Final = ("dot8", "mmla8", "multiply_wide", "fma", "other")
"""Dot products of int8 (SDOT and kin), their matrix form (SMMLA and kin), widening integer multiplications, fused
floating-point multiply-adds, and everything else."""


class Counts(msgspec.Struct, frozen=True):
    """Executed instructions by class."""

    dot8: float
    mmla8: float
    multiply_wide: float
    fma: float
    other: float

    @property
    def total(self) -> float:
        """All classes together."""
        return self.dot8 + self.mmla8 + self.multiply_wide + self.fma + self.other


class CountSummary(msgspec.Struct, frozen=True):
    """Repeated counts of the same work.

    Attributes:
        median: instructions per unit of work, by class.
        total: all classes together.
        spread: largest minus smallest total, relative to the median.
    """

    median: Counts
    total: float
    spread: float


def parse_marks(text: str) -> list[Counts]:
    """Running totals at each marker.

    Raises:
        MismatchError: a line is not what the plugin writes.
    """
    return [_parse_mark(line) for line in text.splitlines()]


def split_marks(marks: Sequence[Counts], *, targets: int, repeats: int) -> list[Sequence[Counts]]:
    """The markers of each target: one before and one after every counted run.

    Raises:
        MismatchError: there are more or fewer of them.
    """
    each = repeats + 1
    if len(marks) != targets * each:
        raise MismatchError(
            f"the emulated program left {len(marks)} markers where {targets * each} were expected",
            cure="run sf-bench arm-setup --rebuild",
        )
    return [marks[first : first + each] for first in range(0, len(marks), each)]


def summarize_counts(marks: Sequence[Counts], *, units: int) -> CountSummary:
    """The intervals between one target's markers, per unit of work (such as a token)."""
    intervals = [_per_unit(first, last, units) for first, last in itertools.pairwise(marks)]
    totals = [interval.total for interval in intervals]
    middle = statistics.median(totals)
    median = Counts(*(statistics.median(getattr(each, name) for each in intervals) for name in CLASSES))
    return CountSummary(median=median, total=middle, spread=(max(totals) - min(totals)) / middle if middle else 0.0)


def _parse_mark(line: str) -> Counts:
    found = re.fullmatch("mark " + " ".join(rf"{name}=(\d+)" for name in CLASSES), line)
    if found is None:
        raise MismatchError(
            f"the instruction counter wrote {line[:80]!r}, which is no line of counts",
            cure="run sf-bench arm-setup --rebuild",
        )
    return Counts(*map(int, found.groups()))


def _per_unit(first: Counts, last: Counts, units: int) -> Counts:
    return Counts(*((getattr(last, name) - getattr(first, name)) / units for name in CLASSES))
