"""The link to the server, and the one door to ZeroMQ: a DEALER socket that sends and receives frames and counts their bytes."""

from __future__ import annotations

import contextlib
import errno
import math
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Final

import zmq
from zmq.utils import z85

from sf_contract.errors import UsageError
from sf_contract.frames import RawFrame
from sf_contract.limits import CURVE_FRAME_BYTES, MAX_HEADER_BYTES
from sf_contract.link_keys import LinkPublicKey, LinkSecretKey
from sf_edge.link.events import AttemptWatch, Endpoints, LinkEvent, Step
from sf_edge.link.security import LinkKeys

LIBRARY_VERSION: Final = zmq.__version__
_RECONNECT_MS: Final = 500
_LONGEST_RECONNECT_MS: Final = 8_000
_HANDSHAKE_MS: Final = 10_000
_CONNECT_MS: Final = 10_000
_AUTH_REFUSED: Final = 400
_MONITOR_EVENT: Final = struct.Struct("=Hi")
"""First frame of what a monitor sends: event and value (zmq_socket_monitor(3)). The library's own reader of it
loads asyncio, which takes 4 MB and a tenth of the start."""

_STEPS: Final = {
    zmq.EVENT_CONNECT_DELAYED: Step.CONNECTING,
    zmq.EVENT_CONNECTED: Step.CONNECTED,
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Step.HANDSHAKE_DONE,
    zmq.EVENT_DISCONNECTED: Step.DISCONNECTED,
    zmq.EVENT_CONNECT_RETRIED: Step.RETRIED,
}
_WATCHED: Final = (
    zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Link:
    """One outbound connection. ZeroMQ makes it again by itself when it breaks; what was under way is then lost.

    Args:
        address: ZeroMQ address of the server.
        keys: encrypt and authenticate with them; None sends in the clear.

    Attributes:
        bytes_up: bytes of frames handed to ZeroMQ since the start.
        bytes_down: bytes of frames received since the start.
        ends: who talks to whom, for messages.
    """

    def __init__(self, address: str, keys: LinkKeys | None = None) -> None:
        self._address = address
        self._keys = keys
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._attempts = self._new_watch()
        self.ends = Endpoints(
            address=address,
            key_id=None if keys is None else public_key(keys.secret).key_id,
            server_key_id=None if keys is None else keys.server.key_id,
        )
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
        _set_limits(dealer)
        if self._keys is not None:
            _encrypt(dealer, self._keys)
        self._attempts = self._new_watch()
        self._monitor = dealer.get_monitor_socket(_WATCHED)
        try:
            dealer.connect(self._address)
        except zmq.ZMQError as problem:
            raise UsageError(
                f"--server {self._address} cannot be used: {problem.strerror}", cure="correct the address"
            ) from problem

    def disconnect(self) -> None:
        """Drop the socket with everything that it still holds."""
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
            self._socket = None
        if self._monitor is not None:
            self._monitor.close(linger=0)
            self._monitor = None

    def _new_watch(self) -> AttemptWatch:
        return AttemptWatch(has_host=self._address.startswith("tcp:"))

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

    def events(self) -> list[LinkEvent]:
        """What became of the connection since the last call; never waits."""
        found: list[LinkEvent] = []
        while self._monitor is not None and self._monitor.poll(0):
            kind, value = _MONITOR_EVENT.unpack(self._monitor.recv_multipart()[0])
            step = _step(kind, value)
            event = None if step is None else self._attempts.note(step)
            if event is not None:
                found.append(event)
        return found

    def wait(self, timeout_s: float, *, wake_descriptors: Sequence[int]) -> None:
        """Block until a message or news of the connection arrives, a descriptor becomes readable or the time is over."""
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor):
            if socket is not None:
                poller.register(socket, zmq.POLLIN)
        for descriptor in wake_descriptors:
            poller.register(descriptor, zmq.POLLIN)
        poller.poll(max(0, math.ceil(timeout_s * 1000)))


def public_key(secret: LinkSecretKey) -> LinkPublicKey:
    """Equal to `secret.public`, from ZeroMQ's own library: loading PyNaCl for it would take 1.5 MB of a device's memory."""
    return LinkPublicKey(z85.decode(zmq.curve_public(z85.encode(secret.raw))))


def _set_limits(dealer: zmq.Socket[bytes]) -> None:
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.IPV6, 1)
    dealer.setsockopt(zmq.SNDHWM, 0)  # the byte credit is the bound
    dealer.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES + CURVE_FRAME_BYTES)  # the server sends headers only
    dealer.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RECONNECT_MS)
    dealer.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    dealer.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)


def _encrypt(dealer: zmq.Socket[bytes], keys: LinkKeys) -> None:
    dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.raw)
    dealer.setsockopt(zmq.CURVE_PUBLICKEY, public_key(keys.secret).raw)
    dealer.setsockopt(zmq.CURVE_SERVERKEY, keys.server.raw)


def _step(event: int, value: int) -> Step | None:
    match event:
        case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return Step.KEY_REFUSED if value == _AUTH_REFUSED else Step.HANDSHAKE_DROPPED
        case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return (
                Step.OTHER_MECHANISM if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH else Step.HANDSHAKE_DROPPED
            )
        case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return Step.HANDSHAKE_TIMED_OUT if value == errno.EAGAIN else Step.HANDSHAKE_DROPPED
        case _:
            return _STEPS.get(zmq.Event(event))
