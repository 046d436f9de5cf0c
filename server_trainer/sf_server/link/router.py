"""The server's socket; the one door to ZeroMQ on the server. Every limit that ZeroMQ offers against strangers is set here.

One thread serves three sockets: the ROUTER that devices talk to, the socket on which ZeroMQ asks whether a key may come in
(ZAP, RFC 27), and the monitor that tells which connections there are. A ROUTER that encrypts and gets no answer to ZAP lets
nobody in.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from sf_contract import limits
from sf_contract.errors import AddressInUse, UsageError
from sf_contract.frames import RawFrame
from sf_contract.link_keys import LinkPublicKey, LinkSecretKey
from sf_server.link.doorkeeper import Closing, Doorkeeper, DoorLimits
from sf_server.link.notices import Notices
from sf_server.link.security import check_bind
from sf_server.link.tcp_bytes import end_connection, received_bytes

MAX_FRAMES: Final = 2 + limits.MAX_BUFFERS
"""Frames of a message behind the sender's identity; more are counted and dropped as they are read."""

WAITING_MESSAGES_PER_DEVICE: Final = 8
"""ZeroMQ reads no further from a device that has so many messages waiting here."""

ANSWERS_PER_DEVICE: Final = 1_000
LINGER_MS: Final = 1_000
HANDSHAKE_MS: Final = 10_000
KEEPALIVE_IDLE_S: Final = 30
KEEPALIVE_EVERY_S: Final = 10
KEEPALIVE_PROBES: Final = 3
SILENT_PEER_MS: Final = 60_000
"""TCP itself finds out that a peer has vanished, within a minute. ZeroMQ's own heartbeat must stay off: libzmq 4.3.5 ends the
whole process (`Assertion failed: !_io_error`) when it is due on a connection that was reset while its messages waited here."""
DEFAULT_CONNECTIONS: Final = 2_000
SWEEP_EVERY_S: Final = 0.2
FAREWELL_S: Final = 1.0
"""A key that was withdrawn keeps its connections for so long, to be told why."""

_ZAP_ADDRESS: Final = "inproc://zeromq.zap.01"
_ZAP_DOMAIN: Final = b"splitfrozen"
_WATCHED: Final = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
"""Not `EVENT_HANDSHAKE_FAILED_PROTOCOL`: libzmq 4.3.5 loses the error number when it reports that, for a message that was
changed on its way, and then keeps the connection for ever, without reading from it."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a message, as far as encryption proves it; in the clear neither is known."""

    key: LinkPublicKey | None = None
    address: str = ""


UNKNOWN_SENDER: Final = Sender()


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A message as it came.

    Attributes:
        identity: the connection, for the answer.
        frames: at most `MAX_FRAMES + 1` frames, so that too many can be told from enough.
        nbytes: length of all frames, those that were dropped included.
        sender: whose key came with it.
    """

    identity: bytes
    frames: tuple[bytes, ...]
    nbytes: int
    sender: Sender = UNKNOWN_SENDER


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """What connections may do.

    Attributes:
        frame_bytes: size of one frame.
        undelivered_bytes: what a connection may receive without a whole message coming out of it.
        connections: how many there may be.
    """

    frame_bytes: int = limits.MAX_BUFFER_BYTES
    undelivered_bytes: int = 4 * limits.MAX_BUFFER_BYTES
    connections: int = DEFAULT_CONNECTIONS


@dataclass(frozen=True, slots=True)
class Encryption:
    """Reception of known keys only.

    Attributes:
        secret: the server's key.
        admits: says whether a key may come in; its second argument is the network address it comes from.
    """

    secret: LinkSecretKey
    admits: Callable[[LinkPublicKey, str], bool]


class Router:
    """A bound ROUTER socket.

    Args:
        bind: the address.
        encryption: None receives in the clear.
        notices: takes lines about connections that were closed.

    Raises:
        UsageError: the address is none, or cannot be bound.
        AddressInUse: another program holds it.
    """

    def __init__(
        self,
        bind: str,
        *,
        encryption: Encryption | None = None,
        door: RouterLimits | None = None,
        notices: Notices | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_bind(bind)
        chosen = door or RouterLimits()
        self._encryption = encryption
        self._notices = notices
        self._clock = clock
        self._door = Doorkeeper(DoorLimits(connections=chosen.connections, undelivered_bytes=chosen.undelivered_bytes))
        self._identities: dict[int, bytes] = {}
        self._silent_keys = 0
        self._gone: list[bytes] = []
        self._withdrawn: list[tuple[float, bytes]] = []
        self._swept_s = clock()
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._socket = self._context.socket(zmq.ROUTER)
        self._monitor = self._socket.get_monitor_socket(_WATCHED)
        try:
            _set_limits(self._socket, frame_bytes=chosen.frame_bytes)
            self._socket.setsockopt(zmq.IPV6, int("[" in bind))
            if encryption is not None:
                self._zap.bind(_ZAP_ADDRESS)
                _encrypt(self._socket, encryption.secret)
            _bind(self._socket, bind)
        except BaseException:
            self.close()
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._poller = zmq.Poller()
        for socket in (self._socket, self._zap, self._monitor):
            self._poller.register(socket, zmq.POLLIN)

    def receive(self, *, timeout_s: float, max_bytes: int, max_messages: int) -> list[Arrival]:
        """What has arrived, one message of each device in turn, until nothing is left or a limit is reached.

        Waits at most `timeout_s` for the first message; meanwhile, and before, looks after connections and handshakes.
        """
        arrivals: list[Arrival] = []
        room = max_bytes
        end_s = self._clock() + timeout_s
        self._sweep()
        while room > 0 and len(arrivals) < max_messages and self._wait_for_message(end_s):
            arrival = self._receive_one()
            arrivals.append(arrival)
            room -= arrival.nbytes
            end_s = float("-inf")
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

    def withdraw(self, key: LinkPublicKey) -> None:
        """Close the connections of a key in a moment; what was sent to them before still goes out."""
        self._withdrawn.append((self._clock() + FAREWELL_S, key.raw))

    def take_gone(self) -> list[bytes]:
        """Connections that have ended since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def close(self) -> None:
        """Send what is still queued, for at most a second, and release the address."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=LINGER_MS)
        self._zap.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _wait_for_message(self, end_s: float) -> bool:
        while True:
            left_s = end_s - self._clock()
            ready = dict(self._poller.poll(max(0, math.ceil(left_s * 1000)) if left_s > 0 else 0))
            if self._zap in ready:
                self._answer_handshakes()
            if self._monitor in ready:
                self._note_connections()
            if self._socket in ready:
                return True
            if left_s <= 0:
                return False
            self._sweep()

    def _receive_one(self) -> Arrival:
        identity = self._socket.recv(copy=False)
        sender = self._sender_of(identity)
        number = int(identity.get(zmq.SRCFD))
        if number not in self._door:
            self._note_connections()
        if number not in self._identities:
            self._silent_keys = max(0, self._silent_keys - 1)
        self._identities[number] = identity.bytes
        self._close(
            self._door.heard(number, None if sender.key is None else sender.key.raw, now_s=self._clock()), sender
        )
        frames: list[bytes] = []
        nbytes = 0
        while self._socket.getsockopt(zmq.RCVMORE):  # the attribute of that name takes as long as receiving a frame
            frame = self._socket.recv()
            nbytes += len(frame)
            if len(frames) <= MAX_FRAMES:
                frames.append(frame)
        return Arrival(identity=identity.bytes, frames=tuple(frames), nbytes=nbytes, sender=sender)

    def _sender_of(self, frame: zmq.Frame) -> Sender:
        if self._encryption is None:
            return UNKNOWN_SENDER
        return Sender(
            key=LinkPublicKey(bytes.fromhex(str(frame.get("User-Id")))), address=str(frame.get("Peer-Address"))
        )

    def _answer_handshakes(self) -> None:
        """Answer what ZeroMQ asks: may this key come in?"""
        while self._encryption is not None and self._zap.poll(0):
            version, request, _domain, address, _identity, _mechanism, raw = self._zap.recv_multipart()
            key = LinkPublicKey(raw)
            self._silent_keys += 1
            if self._encryption.admits(key, address.decode("ascii", "replace")):
                self._zap.send_multipart([version, request, b"200", b"", key.hex.encode(), b""])
            else:
                self._zap.send_multipart([version, request, b"400", b"unknown key", b"", b""])

    def _note_connections(self) -> None:
        while self._monitor.poll(0):
            message = recv_monitor_message(self._monitor)
            match message["event"]:
                case zmq.EVENT_ACCEPTED:
                    self._close(self._door.opened(message["value"], now_s=self._clock()))
                case _:
                    self._door.closed(message["value"])
                    gone = self._identities.pop(message["value"], None)
                    self._gone += [] if gone is None else [gone]
                    if gone is None:
                        self._note_stranger()

    def _note_stranger(self) -> None:
        """A connection has ended that never said anything: it showed a key before (`_silent_keys` counts these), or none."""
        if self._silent_keys:
            self._silent_keys -= 1
        elif self._notices is not None and self._encryption is not None:
            self._notices.say_once(
                "stranger",
                "somebody tried to connect without encryption, or expected a server with another key, and was refused; "
                f"devices need --server-key, and this server's key is {self._encryption.secret.public.key_id}",
            )

    def _sweep(self) -> None:
        now_s = self._clock()
        if now_s - self._swept_s < SWEEP_EVERY_S:
            return
        self._swept_s = now_s
        self._note_connections()
        self._close(self._door.overdue(received_bytes, now_s=now_s))
        while self._withdrawn and self._withdrawn[0][0] <= now_s:
            _, raw = self._withdrawn.pop(0)
            for number in self._door.of_key(raw):
                end_connection(number)

    def _close(self, closings: Sequence[Closing], sender: Sender = UNKNOWN_SENDER) -> None:
        for closing in closings:
            end_connection(closing.number)
            if self._notices is not None:
                whose = "a connection" if sender.key is None else f"a connection of key {sender.key.key_id}"
                self._notices.say_once(("closed", closing.why), f"{whose} was closed: {closing.why}")


def _set_limits(socket: zmq.Socket[bytes], *, frame_bytes: int) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes + limits.CURVE_FRAME_BYTES)
    socket.setsockopt(zmq.RCVHWM, WAITING_MESSAGES_PER_DEVICE)
    socket.setsockopt(zmq.SNDHWM, ANSWERS_PER_DEVICE)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 0)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_EVERY_S)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_PROBES)
    socket.setsockopt(zmq.TCP_MAXRT, SILENT_PEER_MS)


def _encrypt(socket: zmq.Socket[bytes], secret: LinkSecretKey) -> None:
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret.raw)
    socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


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
