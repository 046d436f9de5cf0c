"""What became of the connection to the server, as small events: pure, without sockets.

ZeroMQ connects by itself and says nothing when it cannot; only its monitor tells. One attempt goes

    connecting --> connected --> handshake done      : UP, later DOWN
        |              |-------> handshake failed    : why is told apart below
        |              '-------> disconnected        : not even a ZeroMQ handshake: NOT_OURS
        '--> retried                                 : nobody listens; without `connecting` before, the name has no address
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from sf_contract.errors import NotAuthorised, ServerUnreachable, SplitFrozenError, WrongServerKey


class Step(enum.Enum):
    """What ZeroMQ's monitor reports about one attempt, as far as it matters here."""

    CONNECTING = enum.auto()
    CONNECTED = enum.auto()
    HANDSHAKE_DONE = enum.auto()
    KEY_REFUSED = enum.auto()
    """The server answered the handshake with status 400."""
    OTHER_MECHANISM = enum.auto()
    """One side encrypts, the other does not. Often the other side drops the connection before this side can tell."""
    HANDSHAKE_DROPPED = enum.auto()
    """The other side closed the connection in the middle of the handshake."""
    HANDSHAKE_TIMED_OUT = enum.auto()
    DISCONNECTED = enum.auto()
    RETRIED = enum.auto()


class LinkEvent(enum.Enum):
    """What the session is told about the link."""

    UP = "up"
    DOWN = "down"
    NO_LISTENER = "no-listener"
    NO_ADDRESS = "no-address"
    KEY_REFUSED = "key-refused"
    DROPPED = "dropped"
    OTHER_MECHANISM = "other-mechanism"
    SILENT = "silent"
    NOT_OURS = "not-ours"


ENDS_ATTEMPT: Final = frozenset(
    {LinkEvent.KEY_REFUSED, LinkEvent.DROPPED, LinkEvent.OTHER_MECHANISM, LinkEvent.SILENT, LinkEvent.NOT_OURS}
)
"""After these ZeroMQ may never try again with the same socket; the session opens a new one."""

_OF_HANDSHAKE: Final = {
    Step.KEY_REFUSED: LinkEvent.KEY_REFUSED,
    Step.OTHER_MECHANISM: LinkEvent.OTHER_MECHANISM,
    Step.HANDSHAKE_DROPPED: LinkEvent.DROPPED,
    Step.HANDSHAKE_TIMED_OUT: LinkEvent.SILENT,
}


class AttemptWatch:
    """Turns the steps of one socket's attempts into events.

    Args:
        has_host: the address holds a host, which may have no network address.
    """

    def __init__(self, *, has_host: bool) -> None:
        self._has_host = has_host
        self._last: Step | None = None

    def note(self, step: Step) -> LinkEvent | None:
        """The event that a step amounts to; None when it says nothing new."""
        before, self._last = self._last, step
        match step:
            case Step.HANDSHAKE_DONE:
                return LinkEvent.UP
            case Step.DISCONNECTED if before is Step.HANDSHAKE_DONE:
                return LinkEvent.DOWN
            case Step.DISCONNECTED if before is Step.CONNECTED:
                return LinkEvent.NOT_OURS
            case Step.RETRIED if before is Step.CONNECTING:
                return LinkEvent.NO_LISTENER
            case Step.RETRIED if before in (None, Step.RETRIED):
                return LinkEvent.NO_ADDRESS if self._has_host else LinkEvent.NO_LISTENER
            case _:
                return _OF_HANDSHAKE.get(step)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Who talks to whom.

    Attributes:
        address: the server's.
        key_id: this device's key, None when the link is not encrypted.
        server_key_id: the key the server must have.
    """

    address: str
    key_id: str | None = None
    server_key_id: str | None = None


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What an event says about the server's address, what helps, and the error it ends a first wait with."""

    said: str
    cure: str
    kind: type[SplitFrozenError] = ServerUnreachable


_START: Final = "start the server, or correct --server, and check firewalls; then run the same command again"
_OF_ADDRESS: Final = {
    LinkEvent.UP: _Meaning("it is connected", "see the server's messages, then run the same command again"),
    LinkEvent.DOWN: _Meaning("the connection broke", _START),
    LinkEvent.NO_LISTENER: _Meaning("nobody accepts connections there", _START),
    LinkEvent.NO_ADDRESS: _Meaning(
        "its host name has no address, or this machine has no network",
        "correct the host name in --server, or connect this machine to the network",
    ),
    LinkEvent.SILENT: _Meaning("it accepts connections but says nothing", _START),
    LinkEvent.NOT_OURS: _Meaning(
        "what listens there is no SplitFrozen server", "correct host and port in --server", WrongServerKey
    ),
}
_IN_THE_CLEAR: Final = {
    **_OF_ADDRESS,
    LinkEvent.DROPPED: _Meaning(
        "it accepts connections but drops the handshake, as a server does that encrypts",
        "give --server-key the key that sf-server train printed, or correct --server",
        WrongServerKey,
    ),
    LinkEvent.KEY_REFUSED: _Meaning("the server there turns this device away", "see the server's messages"),
    LinkEvent.OTHER_MECHANISM: _Meaning(
        "the server there encrypts, and this device does not",
        "give --server-key the key that sf-server train printed",
        WrongServerKey,
    ),
}
_ENCRYPTED: Final = {
    **_OF_ADDRESS,
    LinkEvent.DROPPED: _Meaning(
        "it accepts connections but drops the handshake: its key is not {server_key}, or it does not encrypt",
        "give --server-key the key that sf-server train printed; if it is that one, correct --server",
        WrongServerKey,
    ),
    LinkEvent.KEY_REFUSED: _Meaning(
        "the server does not know this device's key {key}",
        "copy this device's .pub file into the server's folder of authorized keys as NAME.pub, where NAME is this device's "
        "name, then run the same command again",
        NotAuthorised,
    ),
    LinkEvent.OTHER_MECHANISM: _Meaning(
        "the server there does not encrypt, and this device insists on it",
        "start the server with --key instead of --insecure, or correct --server",
        WrongServerKey,
    ),
}


def describe(event: LinkEvent, ends: Endpoints) -> str:
    """An event as half a sentence about the server's address."""
    return _meaning(event, ends).said.format(key=ends.key_id, server_key=ends.server_key_id)


def remedy(event: LinkEvent, ends: Endpoints) -> str:
    """What to do about an event."""
    return _meaning(event, ends).cure


def kind_of(event: LinkEvent, ends: Endpoints) -> type[SplitFrozenError]:
    """The kind of failure an event is."""
    return _meaning(event, ends).kind


def failure(event: LinkEvent | None, ends: Endpoints, *, after_s: float, kept: str) -> SplitFrozenError:
    """The error that a wait for the first answer ends with: ServerUnreachable, NotAuthorised or WrongServerKey.

    Args:
        event: what is known about the link, None when nothing is.
        after_s: how long was waited.
        kept: what became of the samples, as half a sentence.
    """
    silence = f"nobody answered at {ends.address} for {after_s:.0f} s"
    if event is None:
        return ServerUnreachable(
            f"{silence}; {kept}", cure="start the server or correct --server, then run the same command again"
        )
    return _meaning(event, ends).kind(f"{silence}: {describe(event, ends)}; {kept}", cure=remedy(event, ends))


def _meaning(event: LinkEvent, ends: Endpoints) -> _Meaning:
    return (_IN_THE_CLEAR if ends.key_id is None else _ENCRYPTED)[event]
