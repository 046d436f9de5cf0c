"""Giving memory back to the system: what was needed for a while, and is free, but still counted as this process's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

QUIET_S: Final = 5.0
"""After so long without a row the next one is not expected at once."""


def give_back_memory() -> None:
    """Return free memory to the system where the C library can (glibc); elsewhere nothing happens.

    Parsing a tokenizer and a graph takes several times the room that the results take, and a long text more than a
    short one. The C library keeps such room for later. Costs milliseconds, so not for every sample.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class IdleMemory:
    """Gives memory back once, after work has stopped for a while.

    Args:
        give_back: does it.
    """

    def __init__(self, give_back: Callable[[], None] = give_back_memory) -> None:
        self._give_back = give_back
        self._is_due = True

    def look(self, idle_since_s: float | None, now_s: float) -> None:
        """Called often; `idle_since_s` is None while there is work."""
        if idle_since_s is None:
            self._is_due = True
        elif self._is_due and now_s - idle_since_s >= QUIET_S:
            self._is_due = False
            self._give_back()
