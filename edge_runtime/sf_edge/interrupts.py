"""SIGINT and SIGTERM as a flag that is looked at between two steps, and that ends a wait."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupts:
    """While entered (in the main thread), the first SIGINT or SIGTERM only sets `received`; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, _Handler] = {}
        self.wake_descriptor: int | None = None
        """Becomes readable when a signal arrives; None while not entered."""

    def __enter__(self) -> Interrupts:
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self.wake_descriptor = self._wake_reader.fileno()
        self._descriptor_before = signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
        signal.set_wakeup_fd(self._descriptor_before)
        self.wake_descriptor = None
        self._wake_reader.close()
        self._wake_writer.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
