"""The processes under torture: each with log files of its own, and what it was ever seen to need."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from sf_contract.limits import KIB, MIB

EDGE_PROGRAM: Final = Path(__file__).with_name("edge_process.py")
DISK_LEFT_BYTES: Final = 64 * KIB
"""No file may grow beyond this while the disk is full; SQLite's log passes it within some transactions."""

GROWTH_BYTES: Final = 24 * MIB
"""What a process may need beyond what it needed when it had begun to work. Traffic explains little of it: four devices with
64 KiB of credit, groups and batches made of that, an outbox of 64 KiB. Caches explain some: SQLite's 2 MiB, freed memory
that the allocator keeps. A leak of 24 KiB per fault would pass it in 1,000 faults. The writer of a store has its own cache
besides."""

GROWTH_DESCRIPTORS: Final = 12
"""Open files beyond those at the beginning: connections that are half-open or not closed yet, of every device some."""

BEGINNING_S: Final = 2.0
"""So long after it said that it is ready, a process has begun to work."""

MAY_END_WITH_FULL_DISK: Final = frozenset({19, 22})


@dataclass
class Needs:
    """Memory and open files of one process: at the beginning, and at most."""

    first_bytes: int = 0
    most_bytes: int = 0
    first_files: int = 0
    most_files: int = 0

    def note(self, nbytes: int, files: int, *, has_begun: bool) -> None:
        """A look at the process."""
        self.most_bytes, self.most_files = max(self.most_bytes, nbytes), max(self.most_files, files)
        if has_begun and not self.first_bytes:
            self.first_bytes, self.first_files = self.most_bytes, self.most_files

    def problems(self, name: str, *, growth_bytes: int) -> list[str]:
        """What it needed too much of."""
        found = []
        if self.first_bytes and self.most_bytes > self.first_bytes + growth_bytes:
            found.append(f"{name} grew from {self.first_bytes / MIB:.0f} to {self.most_bytes / MIB:.0f} MiB")
        if self.first_files and self.most_files > self.first_files + GROWTH_DESCRIPTORS:
            found.append(f"{name} had {self.first_files}, then {self.most_files} open files")
        return found


class Child:
    """A process that is started again and again.

    Args:
        name: for messages and log files.
        logs: folder for one log file per start.
        says_when_ready: words of its log file.
        growth_bytes: memory it may need beyond what it needed when it had begun to work.
    """

    def __init__(self, name: str, logs: Path, *, says_when_ready: str, growth_bytes: int = GROWTH_BYTES) -> None:
        self.name = name
        self._growth_bytes = growth_bytes
        self.starts = 0
        self.needs: list[Needs] = []
        self._logs = logs
        self._says_when_ready = says_when_ready
        self._ready_s: float | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that was started last."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> Path:
        """Standard error of the process that was started last."""
        return self._logs / f"{self.name}-{self.starts:04}.log"

    def start(self, arguments: Sequence[object], *, output: Path | None = None) -> None:
        """Start it; it ends with this process."""
        self.starts += 1
        self.needs.append(Needs())
        self._ready_s = None
        with self.log.open("wb") as log, (output or Path(os.devnull)).open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
            )

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.ended()

    def ended(self, *, timeout_s: float = 30.0) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(timeout_s)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code

    def fill_disk(self) -> None:
        """From now on no file of the process may grow beyond a few kilobytes."""
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (DISK_LEFT_BYTES, hard))

    def look(self) -> None:
        """Note what it needs now."""
        try:
            seen = psutil.Process(self.process.pid)
            with seen.oneshot():
                self.needs[-1].note(seen.memory_info().rss, seen.num_fds(), has_begun=self._has_begun())
        except psutil.Error:  # it has just ended
            return

    def is_ready(self) -> bool:
        """True once it has said so."""
        if self._ready_s is None and self._says_when_ready in self.log.read_text("utf-8", "replace"):
            self._ready_s = time.monotonic()
        return self._ready_s is not None

    def _has_begun(self) -> bool:
        return self.is_ready() and self._ready_s is not None and time.monotonic() - self._ready_s >= BEGINNING_S

    def tail(self) -> str:
        """The end of its last log file."""
        return f"--- {self.log.name}\n" + "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])

    def complaints(self) -> list[str]:
        """Tracebacks and warnings in any of its log files, and needs that grew too much."""
        found = [
            problem for needs in self.needs for problem in needs.problems(self.name, growth_bytes=self._growth_bytes)
        ]
        for path in sorted(self._logs.glob(f"{self.name}-*.log")):
            text = path.read_text("utf-8", "replace")
            if "Traceback" in text or "Warning" in text:
                found.append(f"{path.name}:\n{text[-3000:]}")
        return found


def edge_arguments(settings: dict[str, object]) -> list[object]:
    """The command line of a device."""
    return [EDGE_PROGRAM, json.dumps(settings)]


def ingest_arguments(run: Path) -> list[object]:
    """The command line of the server's receiving side."""
    return ["-m", "sf_server.ingest.process", "--run", run]
