"""The run as the dashboard sees it: read when somebody looks, at most once a second, however many look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import msgspec

from sf_contract.errors import SplitFrozenError
from sf_server.seeing.dashboard.changes import changed, full
from sf_server.seeing.state import RunState

READ_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was read last.

    Attributes:
        version: grows whenever something differs.
        state: None when the run cannot be read.
        whole: for who knows nothing: the state, or the trouble.
        change: for who knows the version before; None where that is not enough.
    """

    version: int
    state: RunState | None
    whole: bytes
    change: bytes | None = None


class Watch:
    """Reads a run for several viewers.

    Args:
        read: reads the state; called in one thread of its own, where a store may be kept open.
        clock: seconds, monotonic.
    """

    def __init__(
        self, read: Callable[[], RunState], *, clock: Callable[[], float], every_s: float = READ_EVERY_S
    ) -> None:
        self._read = read
        self._clock = clock
        self._every_s = every_s
        self._seen: Seen | None = None
        self._read_s = float("-inf")
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="run-reader")

    async def look(self) -> Seen:
        """The state of this second."""
        async with self._turn:
            if self._seen is None or self._clock() - self._read_s >= self._every_s:
                self._seen = await asyncio.get_running_loop().run_in_executor(self._thread, self._next, self._seen)
                self._read_s = self._clock()
            return self._seen

    def close(self, close_reader: Callable[[], None]) -> None:
        """End reading, in the thread that reads."""
        self._thread.submit(close_reader).result()
        self._thread.shutdown()

    def _next(self, before: Seen | None) -> Seen:
        version = 0 if before is None else before.version
        try:
            state = self._read()
        except SplitFrozenError as problem:
            return _trouble(problem, before, version)
        if before is None or before.state is None:
            return Seen(version=version + 1, state=state, whole=full(state))
        change = changed(before.state, state)
        if change is None:
            return before
        return Seen(version=version + 1, state=state, whole=full(state), change=change)


def _trouble(problem: SplitFrozenError, before: Seen | None, version: int) -> Seen:
    whole = msgspec.json.encode({"error": problem.what, "cure": problem.cure})
    if before is not None and before.state is None and before.whole == whole:
        return before
    return Seen(version=version + 1, state=None, whole=whole)
