"""What a person is told while `sf-edge run` works: waits, skipped rows, progress. Times go in, lines come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from sf_contract.limits import GIB, KIB, MIB
from sf_edge.actions import Wait
from sf_edge.counters import Counters

WAIT_NOTICE_INTERVAL_S: Final = 10.0
PROGRESS_INTERVAL_S: Final = 5.0
SKIPS_SHOWN: Final = 5

Say = Callable[[str], None]


class WaitNotices:
    """Says what is waited for since when, about a wait that lasts long.

    Args:
        say: prints a line.
        every_s: seconds between two lines about the same wait.
        opening: how a line begins.
    """

    def __init__(self, say: Say, *, every_s: float = WAIT_NOTICE_INTERVAL_S, opening: str = "waiting for ") -> None:
        self._say = say
        self._every_s = every_s
        self._opening = opening
        self._last_s = float("-inf")

    def note(self, wait: Wait | None, now_s: float) -> None:
        """Tell about the wait that is going on now, if it is time."""
        if wait is None or now_s - wait.since_s < WAIT_NOTICE_INTERVAL_S:
            return
        is_new = wait.since_s > self._last_s
        if is_new or now_s - self._last_s >= self._every_s:
            self._last_s = now_s
            why = f": {wait.why}" if wait.why else ""
            self._say(f"{self._opening}{wait.what} since {now_s - wait.since_s:.0f} s{why}")


class SkipNotices:
    """Reports the first skipped rows in full and counts the others."""

    def __init__(self, say: Say, where: str) -> None:
        self._say = say
        self._where = where
        self._skipped = 0

    def note(self, line: int, reason: str, *, where: str | None = None) -> None:
        """A row was skipped, of `where` when that is one of several files."""
        self._skipped += 1
        if self._skipped <= SKIPS_SHOWN:
            self._say(f"{where or self._where}, line {line} skipped: {reason}")

    def close(self) -> None:
        """Say how many rows were skipped without a line of their own."""
        if self._skipped > SKIPS_SHOWN:
            self._say(f"{self._where}: {self._skipped - SKIPS_SHOWN} more rows were skipped")


class ProgressLine:
    """One line every few seconds, unless nothing has changed since the last one."""

    def __init__(self, say: Say, *, device: str, now_s: float) -> None:
        self._say = say
        self._device = device
        self._next_s = now_s + PROGRESS_INTERVAL_S
        self._told: tuple[int, ...] = ()

    def note(self, counters: Counters, waiting_samples: int, now_s: float) -> None:
        """Tell where things stand if it is time."""
        standing = (counters.rows, counters.samples, counters.acknowledged, waiting_samples)
        if now_s < self._next_s or standing == self._told:
            return
        self._next_s = now_s + PROGRESS_INTERVAL_S
        self._told = standing
        self._say(
            f"{self._device}: {counters.rows} rows, {counters.samples} samples, {counters.acknowledged} stored, "
            f"{waiting_samples} waiting, {readable_bytes(counters.bytes_up)} up"
        )


class RunSummary(msgspec.Struct, frozen=True):
    """The end of a run. Counts are totals of the outbox over all runs; `wall_seconds` is this run's."""

    device: str
    outbox_id: str
    bundle_id: str
    outbox: str
    rows: int
    skipped: int
    not_finite: int
    samples: int
    cut: int
    acknowledged: int
    rejected: int
    waiting: int
    forward_passes: int
    uploaded_samples: int
    resent_samples: int
    bytes_up: int
    bytes_down: int
    cpu_seconds: float
    wall_seconds: float


def summary_text(summary: RunSummary) -> str:
    """The summary for a person."""
    skipped = f" ({summary.skipped} skipped)" if summary.skipped else ""
    rejected = f", {summary.rejected} rejected" if summary.rejected else ""
    resent = f" ({summary.resent_samples} sent again)" if summary.resent_samples else ""
    return "\n".join(
        (
            f"{summary.device}: {summary.rows} rows{skipped} -> {summary.samples} samples, "
            f"{summary.acknowledged} stored{rejected}, {summary.waiting} waiting",
            f"  {summary.forward_passes} forward passes, {summary.uploaded_samples} samples uploaded{resent}",
            f"  {readable_bytes(summary.bytes_up)} up, {readable_bytes(summary.bytes_down)} down, "
            f"{summary.cpu_seconds:.1f} CPU seconds, {summary.wall_seconds:.1f} s",
        )
    )


def readable_bytes(nbytes: int) -> str:
    """A size for a person."""
    if nbytes < KIB:
        return f"{nbytes} B"
    if nbytes < MIB:
        return f"{nbytes / KIB:.1f} KiB"
    if nbytes < GIB:
        return f"{nbytes / MIB:.1f} MiB"
    return f"{nbytes / GIB:.1f} GiB"
