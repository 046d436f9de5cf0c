"""What every attack on the wire is: messages with an argument, and what they must be answered with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from hostile.wire.peers import Mallory
from sf_contract.frames import RawFrame
from sf_contract.limits import MIB
from sf_contract.messages import AnyMessage, RefusalCode, RejectionCode
from sf_edge.session import Session

Frames = list[RawFrame]
Assault = Callable[[Mallory], Iterator[Frames]]
Expected = RefusalCode | RejectionCode | type[AnyMessage]


@dataclass(frozen=True, slots=True)
class Attack:
    """Messages of a hostile device to the server. The docstring of `assault` argues: who does it, what for, why it fails.

    Attributes:
        assault: gives the messages, one after another; each is answered before the next.
        answer: what each of them is answered with; with `is_prepared` only the last one.
        has_greeted: the attacker is a device that was let in.
        has_key: the server receives encrypted; the attacker's key may only be used by `mallory`.
        memory_bytes: what Python may set aside until the last answer, above what the messages themselves take.
    """

    assault: Assault
    answer: Expected
    is_prepared: bool
    has_greeted: bool
    has_key: bool
    memory_bytes: int

    @property
    def name(self) -> str:
        """Name of the builder."""
        return self.assault.__name__


ATTACKS: Final[list[Attack]] = []
DEVICE_ATTACKS: Final[list[Callable[[Session], None]]] = []


def on_server(
    answer: Expected,
    *,
    is_prepared: bool = False,
    has_greeted: bool = True,
    has_key: bool = False,
    memory_bytes: int = 2 * MIB,
) -> Callable[[Assault], Assault]:
    """Registers an attack on the server."""

    def register(assault: Assault) -> Assault:
        assert assault.__doc__, f"{assault.__name__} needs its argument"
        ATTACKS.append(
            Attack(
                assault,
                answer,
                is_prepared=is_prepared,
                has_greeted=has_greeted,
                has_key=has_key,
                memory_bytes=memory_bytes,
            )
        )
        return assault

    return register


def on_device(assault: Callable[[Session], None]) -> Callable[[Session], None]:
    """Registers an attack on a device: it gets a session that has just been made, and says itself what must come of it."""
    assert assault.__doc__, f"{assault.__name__} needs its argument"
    DEVICE_ATTACKS.append(assault)
    return assault
