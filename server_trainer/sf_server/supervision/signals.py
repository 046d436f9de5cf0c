"""Signals as something to wait for."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType
from typing import Final, Self

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class SignalWatch:
    """Between `with` and its end, SIGTERM and SIGINT are remembered instead of ending the process, and wake `wait`.

    So does the end of any child. For the main thread only; the former handlers come back at the end.
    """

    def __init__(self) -> None:
        self.stop_signals: list[int] = []
        """Every SIGTERM and SIGINT that came."""

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until a watched signal comes, or came since the last call, or the time is over."""
        select.select([self._reader], [], [], timeout_s)
        while select.select([self._reader], [], [], 0)[0]:
            os.read(self._reader, 512)

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._former_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, self._note) for number in (*STOP_SIGNALS, signal.SIGCHLD)}
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number in STOP_SIGNALS:
            self.stop_signals.append(number)
