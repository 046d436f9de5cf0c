"""The metrics log: one JSON object per line, readable while training writes it. A full disk holds lines up, not training."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from sf_server.training.room import is_no_room

MOST_WAITING: Final = 10_000
"""Lines that are kept in memory while there is no room for them; then the oldest are given up."""


class MetricsLog:
    """Appends to `metrics.jsonl`.

    Args:
        path: the file.
        after_step: lines of later steps are dropped first: they belong to work that was lost and is done again.
        say: told when there is no room, and when there is again.
        mirror: given every entry, too.
    """

    def __init__(
        self,
        path: Path,
        *,
        after_step: int,
        say: Callable[[str], None] | None = None,
        mirror: Callable[[Mapping[str, object]], None] | None = None,
    ) -> None:
        self._path = path
        self._mirror = mirror
        self._say = say or (lambda _: None)
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._is_full = False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._end = 0
        self.rewind(after_step=after_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits, if there is room, and close the file."""
        self.flush()
        os.close(self._file)

    def rewind(self, *, after_step: int, after_epoch: int | None = None) -> None:
        """Drop what belongs to work that is done again: later steps and, if given, the validation of later epochs."""
        self._end = 0
        with self._path.open("rb") as lines:
            for line in lines:
                if not _stays(line, after_step=after_step, after_epoch=after_epoch):
                    break
                self._end += len(line)
        os.ftruncate(self._file, self._end)

    def write(self, entry: Mapping[str, object]) -> None:
        """Append one entry and its time (seconds since 1970); readers see it at once, or once there is room again."""
        if self._mirror is not None:
            self._mirror(entry)
        line = {"time_s": round(time.time(), 3), **entry}
        self._waiting.append(json.dumps(line, sort_keys=True).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        """Write lines that wait for room, as far as there is any."""
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as problem:
            os.ftruncate(self._file, self._end)
            if not is_no_room(problem):
                raise
            self._note_full()
        else:
            self._note_room()

    def _append(self, line: bytes) -> None:
        written = 0
        while written < len(line):
            written += os.pwrite(self._file, line[written:], self._end + written)
        self._end += written

    def _note_full(self) -> None:
        if not self._is_full:
            self._say(f"there is no room for {self._path}; its lines wait in memory, at most {MOST_WAITING:,} of them")
        self._is_full = True

    def _note_room(self) -> None:
        if self._is_full:
            self._say(f"there is room for {self._path} again")
        self._is_full = False


def _stays(line: bytes, *, after_step: int, after_epoch: int | None) -> bool:
    """Lines are in the order of the work, so what follows the first one that does not stay need not be looked at."""
    if not line.endswith(b"\n"):
        return False
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return False
    if int(entry.get("step", 0)) > after_step:
        return False
    is_late = after_epoch is not None and entry.get("kind") == "validation" and int(entry.get("epoch", 0)) > after_epoch
    return not is_late
