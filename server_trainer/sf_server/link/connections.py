"""What ingest remembers of each connection, and traffic that is not in the store yet. No sockets, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sf_contract.link_keys import LinkPublicKey
from sf_server.ingest.admission import Presence, Session

FORGET_CONNECTION_S: Final = 3600.0
"""A connection that was silent for so long has to greet again."""


@dataclass(slots=True)
class Connection:
    """One peer.

    Attributes:
        key: the key that its messages come with, None in the clear.
        waiting_bytes: payload that came and is not answered yet.
        credit_bytes: what it was last told that it may have in flight.
    """

    last_heard_s: float
    key: LinkPublicKey | None = None
    session: Session | None = None
    finished: bool = False
    waiting_bytes: int = 0
    credit_bytes: int = 0


@dataclass(slots=True)
class Traffic:
    """Bytes, unusable messages and the activity of one outbox since they were last written down."""

    bytes_in: int = 0
    bytes_out: int = 0
    malformed: int = 0
    activity: str | None = None
    """What the device last said holds it back; empty: nothing does; None: it said nothing."""


class Connections:
    """All peers by the identity that the socket gave them."""

    def __init__(self) -> None:
        self._by_identity: dict[bytes, Connection] = {}

    def heard(self, identity: bytes, key: LinkPublicKey | None = None, *, now_s: float) -> Connection:
        """The connection a message came from; made when it is the first, and anew when another key uses its identity."""
        connection = self._by_identity.get(identity)
        if connection is None or connection.key != key:
            connection = Connection(last_heard_s=now_s, key=key)
            self._by_identity[identity] = connection
        connection.last_heard_s = now_s
        return connection

    def session_of(self, identity: bytes) -> Session | None:
        """The session of a connection, if it has greeted."""
        connection = self._by_identity.get(identity)
        return None if connection is None else connection.session

    def present_besides(self, identity: bytes) -> Iterator[Presence]:
        """Sessions of other connections that have not finished."""
        for other, connection in self._by_identity.items():
            if other != identity and connection.session is not None and not connection.finished:
                yield Presence(session=connection.session, last_heard_s=connection.last_heard_s)

    def unfinished(self) -> list[bytes]:
        """Connections with a session that has not finished."""
        return [
            identity
            for identity, connection in self._by_identity.items()
            if connection.session is not None and not connection.finished
        ]

    def begin(self, identity: bytes, session: Session) -> None:
        """Start a session; an earlier connection of the same outbox has ended."""
        for connection in self._by_identity.values():
            if connection.session is not None and connection.session.outbox == session.outbox:
                connection.session = None
        connection = self._by_identity[identity]
        connection.session = session
        connection.finished = False
        connection.waiting_bytes = 0

    def with_session(self) -> list[tuple[bytes, Connection, Session]]:
        """Connections that have greeted."""
        return [
            (identity, connection, connection.session)
            for identity, connection in self._by_identity.items()
            if connection.session is not None
        ]

    def granted(self, identity: bytes, credit_bytes: int) -> None:
        """Its device was told what it may have in flight."""
        self._by_identity[identity].credit_bytes = credit_bytes

    def finish(self, identity: bytes) -> None:
        """Its device has finished."""
        self._by_identity[identity].finished = True

    def end(self, identity: bytes) -> None:
        """Forget a session: the device has to greet again."""
        self._by_identity[identity].session = None

    def drop(self, identity: bytes) -> None:
        """Forget a connection that is gone, if it is known."""
        self._by_identity.pop(identity, None)

    def all_answered(self) -> None:
        """Nothing is in flight any more."""
        for connection in self._by_identity.values():
            connection.waiting_bytes = 0

    def forget_silent(self, *, now_s: float) -> None:
        """Drop connections that were silent for long, so that memory stays bounded."""
        self._by_identity = {
            identity: connection
            for identity, connection in self._by_identity.items()
            if now_s - connection.last_heard_s < FORGET_CONNECTION_S
        }
