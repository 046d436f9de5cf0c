"""What the session asks the loop to do, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass

from sf_contract.messages import AnyMessage, Verdict


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a new socket."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Drop the socket and what it still holds."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message without buffers."""

    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Settle:
    """Hand verdicts to the outbox."""

    verdicts: tuple[Verdict, ...]


Action = Connect | Disconnect | Send | Settle


@dataclass(frozen=True, slots=True)
class Wait:
    """What the session waits for, since when, and, where it is known, why that does not happen."""

    what: str
    since_s: float
    why: str = ""
