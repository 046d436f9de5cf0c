"""What Linux says about a running process: memory, processor time, open files, bytes written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sf_bench.footprint import parse_cpu_s
from sf_bench.ingest.statistics import slope

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Reading(msgspec.Struct, frozen=True):
    """A process at one moment.

    Attributes:
        at_s: `time.monotonic`.
        samples: what the server had confirmed by then.
        rss_bytes: resident memory.
        cpu_s: processor time since its start, all threads.
        written_bytes: handed to the disk since its start.
        descriptors: open files and connections.
    """

    at_s: float
    samples: int
    rss_bytes: int
    cpu_s: float
    written_bytes: int
    descriptors: int


def read_process(pid: int, *, at_s: float, samples: int) -> Reading:
    """A look at a process."""
    proc = Path(f"/proc/{pid}")
    return Reading(
        at_s=at_s,
        samples=samples,
        rss_bytes=int((proc / "statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES,
        cpu_s=parse_cpu_s((proc / "stat").read_text(encoding="utf-8"), ticks_per_s=os.sysconf("SC_CLK_TCK")),
        written_bytes=parse_written((proc / "io").read_text(encoding="ascii")),
        descriptors=len(list((proc / "fd").iterdir())),
    )


def parse_written(io: str) -> int:
    """Bytes that a process caused to be written to the disk, from `/proc/PID/io`."""
    return int(dict(line.split(": ", 1) for line in io.splitlines())["write_bytes"])


def rss_growth(readings: Sequence[Reading]) -> float | None:
    """Growth of resident memory in KB (thousand bytes) per 1,000 samples; None when nothing was stored meanwhile."""
    # Bytes per sample are KB per 1,000 samples.
    return slope([reading.samples for reading in readings], [reading.rss_bytes for reading in readings])
