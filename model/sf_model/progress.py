"""Telling the person at the terminal that long work goes on, a line every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

Say = Callable[[str], None]
EVERY_S: Final = 5.0
_MB: Final = 1_000_000


def silent(_: str) -> None:
    """Says nothing."""


class ByteProgress:
    """Says how many bytes of a known number are done, at most every `EVERY_S`; short work says nothing.

    Args:
        what: the work, as in "hashing model.safetensors".
        total_bytes: all there is to do.
        clock: seconds that only grow.
    """

    def __init__(self, say: Say, what: str, *, total_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._what, self._total, self._clock = say, what, total_bytes, clock
        self._done = 0
        self._last = clock()

    def add(self, nbytes: int) -> None:
        """So many more are done."""
        self._done += nbytes
        now = self._clock()
        if now - self._last >= EVERY_S:
            self._last = now
            self._say(f"{self._what}: {self._done // _MB:,} of {self._total // _MB:,} MB")


@contextmanager
def told_while(say: Say, what: str, *, every_s: float = EVERY_S) -> Iterator[None]:
    """Within the context, `what` and the seconds so far are said every `every_s`, for work that cannot be counted."""
    done = threading.Event()
    start = time.monotonic()

    def tell() -> None:
        while not done.wait(every_s):
            say(f"{what} ({time.monotonic() - start:.0f} s)")

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
