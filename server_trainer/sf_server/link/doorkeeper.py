"""Which connections may stay: pure decisions about connections that are only numbers here.

ZeroMQ accepts everybody, keeps a half handshake for a while, and holds the parts of a message until the last one has come.
So the doorkeeper looks at what a connection has received without a message coming out of it, at connections that never
say anything, and at their number. What has to go is closed; an honest device simply connects again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sf_contract.limits import KIB

CONNECTIONS_PER_KEY: Final = 4
SILENT_S: Final = 60.0
"""A device greets at once; who has said nothing for so long is none."""

SILENT_BYTES: Final = 64 * KIB
"""A handshake and a greeting have less than 2 KiB."""


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What connections may do.

    Attributes:
        connections: how many there may be.
        undelivered_bytes: what one may receive without a message coming out of it.
        per_key: how many a single key may have.
        silent_s, silent_bytes: how long, and how much, before its first message.
    """

    connections: int
    undelivered_bytes: int
    per_key: int = CONNECTIONS_PER_KEY
    silent_s: float = SILENT_S
    silent_bytes: int = SILENT_BYTES


@dataclass(frozen=True, slots=True)
class Closing:
    """A connection that has to go, and why, in one of a few sentences."""

    number: int
    why: str


@dataclass(slots=True)
class _Guest:
    since_s: float
    heard: bool = False
    key: bytes | None = None
    base_bytes: int | None = None
    is_leaving: bool = False


class Doorkeeper:
    """Keeps the list of connections. Times are seconds of one clock, numbers those of open connections."""

    def __init__(self, limits: DoorLimits) -> None:
        self._limits = limits
        self._guests: dict[int, _Guest] = {}

    def __len__(self) -> int:
        return len(self._guests)

    def __contains__(self, number: int) -> bool:
        return number in self._guests

    def opened(self, number: int, *, now_s: float) -> list[Closing]:
        """A connection was accepted. When there are too many, the one goes that has been silent longest."""
        self._guests[number] = _Guest(since_s=now_s)
        if len(self._guests) <= self._limits.connections:
            return []
        staying = [(guest.heard, guest.since_s, one) for one, guest in self._guests.items() if not guest.is_leaving]
        if len(staying) <= self._limits.connections:
            return []
        others = [entry for entry in staying if entry[2] != number]
        victim = min(others, default=(True, 0.0, number))
        return self._dismiss(number if victim[0] else victim[2], f"there are {self._limits.connections} others")

    def closed(self, number: int) -> None:
        """A connection is gone."""
        self._guests.pop(number, None)

    def heard(self, number: int, key: bytes | None, *, now_s: float) -> list[Closing]:
        """A whole message came. A key that has too many connections loses its oldest one."""
        guest = self._guests.setdefault(number, _Guest(since_s=now_s))
        is_first = not guest.heard
        guest.heard, guest.key, guest.base_bytes = True, key, None
        if key is None or not is_first:
            return []
        same = sorted((self._guests[one].since_s, one) for one in self.of_key(key))
        if len(same) <= self._limits.per_key:
            return []
        return self._dismiss(same[0][1], f"its key has {self._limits.per_key} newer connections")

    def of_key(self, key: bytes) -> list[int]:
        """Connections on which this key was heard."""
        return [one for one, guest in self._guests.items() if guest.key == key and not guest.is_leaving]

    def overdue(self, received_bytes: Callable[[int], int | None], *, now_s: float) -> list[Closing]:
        """Connections that have been silent for too long, or take in more than they may.

        Args:
            received_bytes: all bytes that a connection has received since it was made; None when that cannot be told.
        """
        found: list[Closing] = []
        for number, guest in self._guests.items():
            if not guest.is_leaving:
                why = self._fault(guest, received_bytes(number), now_s)
                if why is not None:
                    guest.is_leaving = True
                    found.append(Closing(number=number, why=why))
        return found

    def _fault(self, guest: _Guest, received: int | None, now_s: float) -> str | None:
        if not guest.heard and now_s - guest.since_s > self._limits.silent_s:
            return f"it said nothing for {self._limits.silent_s:.0f} s"
        if received is None:
            return None
        if not guest.heard:
            is_too_much = received > self._limits.silent_bytes
            return f"it sent more than {self._limits.silent_bytes} bytes and no message" if is_too_much else None
        if guest.base_bytes is None:
            guest.base_bytes = received
        most = self._limits.undelivered_bytes
        return f"it sent more than {most} bytes that make no message" if received - guest.base_bytes > most else None

    def _dismiss(self, number: int, why: str) -> list[Closing]:
        self._guests[number].is_leaving = True
        return [Closing(number=number, why=why)]
