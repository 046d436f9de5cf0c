"""The link to the server, and the one door to ZeroMQ: a DEALER socket that sends and receives frames and counts their bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Final

import zmq

from sf_contract.errors import UsageError
from sf_contract.frames import RawFrame
from sf_contract.limits import MAX_HEADER_BYTES

LIBRARY_VERSION: Final = zmq.__version__
_RECONNECT_MS: Final = 500
_LONGEST_RECONNECT_MS: Final = 8_000


class Link:
    """One outbound connection. ZeroMQ makes it again by itself when it breaks; what was under way is then lost.

    Args:
        address: ZeroMQ address of the server.

    Attributes:
        bytes_up: bytes of frames handed to ZeroMQ since the start.
        bytes_down: bytes of frames received since the start.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self.bytes_up = 0
        self.bytes_down = 0

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()
        self._context.term()

    def connect(self) -> None:
        """Drop the old socket, if any, and open a new one; returns at once, whether the server is there or not.

        Raises:
            UsageError: ZeroMQ cannot use the address.
        """
        self.disconnect()
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket = dealer
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, 1)
        dealer.setsockopt(zmq.SNDHWM, 0)  # the byte credit is the bound
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES)  # the server sends headers only
        dealer.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RECONNECT_MS)
        try:
            dealer.connect(self._address)
        except zmq.ZMQError as problem:
            raise UsageError(
                f"--server {self._address} cannot be used: {problem.strerror}", cure="correct the address"
            ) from problem

    def disconnect(self) -> None:
        """Drop the socket with everything that it still holds."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None

    def send(self, frames: Sequence[RawFrame]) -> None:
        """Hand a message to ZeroMQ; it may be lost."""
        if self._socket is None:
            return
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        self.bytes_up += sum(map(len, frames))

    def receive(self) -> list[bytes] | None:
        """The next message that has arrived; None when there is none."""
        if self._socket is None:
            return None
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        self.bytes_down += sum(map(len, frames))
        return frames

    def wait(self, timeout_s: float, *, wake_descriptor: int | None) -> None:
        """Block until a message arrives, the descriptor becomes readable or the time is over."""
        poller = zmq.Poller()
        if self._socket is not None:
            poller.register(self._socket, zmq.POLLIN)
        if wake_descriptor is not None:
            poller.register(wake_descriptor, zmq.POLLIN)
        poller.poll(max(0, round(timeout_s * 1000)))
