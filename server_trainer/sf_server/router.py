"""The server's socket; the one door to ZeroMQ on the server. Every limit that ZeroMQ offers against strangers is set here."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import zmq

from sf_contract import limits
from sf_contract.errors import AddressInUse, UsageError
from sf_contract.frames import RawFrame
from sf_server.settings import check_bind

MAX_FRAMES: Final = 2 + limits.MAX_BUFFERS
"""Frames of a message behind the sender's identity; more are counted and dropped as they are read."""

WAITING_MESSAGES_PER_DEVICE: Final = 8
"""ZeroMQ reads no further from a device that has so many messages waiting here."""

ANSWERS_PER_DEVICE: Final = 1_000
LINGER_MS: Final = 1_000
HANDSHAKE_MS: Final = 10_000
HEARTBEAT_MS: Final = 10_000
SILENT_PEER_MS: Final = 60_000
KEEPALIVE_IDLE_S: Final = 60


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A message as it came.

    Attributes:
        identity: the connection, for the answer.
        frames: at most `MAX_FRAMES + 1` frames, so that too many can be told from enough.
        nbytes: length of all frames, those that were dropped included.
    """

    identity: bytes
    frames: tuple[bytes, ...]
    nbytes: int


class Router:
    """A bound ROUTER socket.

    Raises:
        UsageError: the address is none, or can be reached from other machines without `insecure`.
        AddressInUse: another program holds it.
    """

    def __init__(self, bind: str, *, insecure: bool) -> None:
        check_bind(bind, insecure=insecure)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        try:
            _set_limits(self._socket)
            self._socket.setsockopt(zmq.IPV6, int("[" in bind))
            _bind(self._socket, bind)
        except BaseException:
            self.close()
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self, *, timeout_s: float, max_bytes: int, max_messages: int) -> list[Arrival]:
        """What has arrived, one message of each device in turn, until nothing is left or a limit is reached.

        Waits at most `timeout_s` for the first message.
        """
        arrivals: list[Arrival] = []
        room = max_bytes
        wait_ms = int(timeout_s * 1000)
        while room > 0 and len(arrivals) < max_messages and self._socket.poll(wait_ms, zmq.POLLIN):
            arrival = self._receive_one()
            arrivals.append(arrival)
            room -= arrival.nbytes
            wait_ms = 0
        return arrivals

    def send(self, identity: bytes, frames: Sequence[RawFrame]) -> bool:
        """Hand an answer over; False when the device is gone or takes no answers. It will ask again."""
        try:
            self._socket.send_multipart([identity, *frames], flags=zmq.NOBLOCK)
        except zmq.ZMQError as problem:
            if problem.errno in (zmq.EAGAIN, errno.EHOSTUNREACH):
                return False
            raise
        return True

    def close(self) -> None:
        """Send what is still queued, for at most a second, and release the address."""
        self._socket.close(linger=LINGER_MS)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _receive_one(self) -> Arrival:
        identity = self._socket.recv()
        frames: list[bytes] = []
        nbytes = 0
        while self._socket.rcvmore:
            frame = self._socket.recv()
            nbytes += len(frame)
            if len(frames) <= MAX_FRAMES:
                frames.append(frame)
        return Arrival(identity=identity, frames=tuple(frames), nbytes=nbytes)


def _set_limits(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, limits.MAX_BUFFER_BYTES)
    socket.setsockopt(zmq.RCVHWM, WAITING_MESSAGES_PER_DEVICE)
    socket.setsockopt(zmq.SNDHWM, ANSWERS_PER_DEVICE)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_PEER_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)


def _bind(socket: zmq.Socket[bytes], bind: str) -> None:
    try:
        socket.bind(bind)
    except zmq.ZMQError as problem:
        if problem.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"another program already listens on {bind}", cure="stop it, or give another port with --bind"
            ) from problem
        raise UsageError(
            f"{bind} cannot be bound: {problem.strerror}",
            cure="give an address of this machine, like tcp://127.0.0.1:5555",
        ) from problem
