"""What a running `sf-edge run` is doing, left in the outbox folder for `sf-edge status`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.limits import KIB

ACTIVITY_FILE: Final = "activity.json"
REWRITE_AFTER_S: Final = 30.0
"""The words of a state change with every per cent; on a memory card that is not worth a write each time."""
_MOST_BYTES: Final = 4 * KIB


class Activity(msgspec.Struct, frozen=True):
    """What the process `pid` is doing, since when; times are seconds since 1970."""

    text: str
    is_paused: bool
    since: float
    pid: int


class ActivityFile:
    """Writes the activity when it changes. What cannot be written is left out: nobody's samples depend on it.

    Args:
        folder: the outbox folder.
        wall_s: seconds since 1970.
    """

    def __init__(self, folder: Path, *, wall_s: Callable[[], float]) -> None:
        self._path = folder / ACTIVITY_FILE
        self._wall_s = wall_s
        self._told: Activity | None = None
        self._written_s = 0.0

    def note(self, text: str, *, is_paused: bool) -> None:
        """This is going on now."""
        told, now_s = self._told, self._wall_s()
        is_same_state = told is not None and told.is_paused == is_paused
        if told is not None and is_same_state and (told.text == text or abs(now_s - self._written_s) < REWRITE_AFTER_S):
            return
        since = told.since if told is not None and is_same_state else now_s
        self._told = Activity(text=text, is_paused=is_paused, since=since, pid=os.getpid())
        self._written_s = now_s
        self._write(msgspec.json.encode(self._told))

    def close(self) -> None:
        """Nothing is going on any more."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self, content: bytes) -> None:
        new = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            new.write_bytes(content)
            new.replace(self._path)


def read_activity(folder: Path) -> Activity | None:
    """What the process that uses this outbox is doing; None when there is none."""
    try:
        with (folder / ACTIVITY_FILE).open("rb") as stream:
            found = msgspec.json.decode(stream.read(_MOST_BYTES), type=Activity)
    except (OSError, msgspec.DecodeError):
        return None
    return found if _is_running(found.pid) else None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
