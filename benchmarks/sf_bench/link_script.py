"""What can be wrong with a link: named profiles, single actions, and scripts of actions drawn from a seed. Pure.

TCP hides a lost packet from the programs above it: what they see is a stall of one retransmission timeout, during which
everything behind the lost packet waits too. A profile models loss as such stalls. That a sender also slows down after a loss
is not modelled; `bytes_per_s` is what is left after it.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


class Direction(enum.StrEnum):
    """Which way bytes go."""

    UP = "up"
    """From the device to the server."""
    DOWN = "down"
    """From the server to the device."""


BOTH: Final = (Direction.UP, Direction.DOWN)


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """How a link behaves when nothing special happens to it.

    Attributes:
        name: for tables.
        delay_s: one way; half a round trip.
        jitter_s: up to so much is added to the delay, evenly distributed. Order is kept.
        bytes_per_s: capacity of each direction, shared by all connections; 0 means unlimited.
        stalls: probability that a chunk of at most 4 KiB stalls.
        stall_s: how long; Linux retransmits after 0.2 s or more.
    """

    name: str
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    stalls: float = 0.0
    stall_s: float = 0.0


LOOPBACK: Final = LinkProfile("loopback")
LAN: Final = LinkProfile("LAN, 1 Gbit/s", delay_s=0.000_25, bytes_per_s=125e6)
HOME: Final = LinkProfile("20 Mbit/s, 20 ms", delay_s=0.010, jitter_s=0.002, bytes_per_s=2.5e6)
MOBILE: Final = LinkProfile(
    "3 Mbit/s, 60 ms, 1 % loss", delay_s=0.030, jitter_s=0.010, bytes_per_s=375e3, stalls=0.027, stall_s=0.26
)
"""1 % of packets of 1,460 bytes are lost: 2.7 % of chunks of 4 KiB. A stall lasts the shortest retransmission timeout and a
round trip. Round trips are given with the names, `delay_s` is half of one."""

PROFILES: Final = {"loopback": LOOPBACK, "lan": LAN, "home": HOME, "mobile": MOBILE}


@dataclass(frozen=True, slots=True)
class Become:
    """From now on the link behaves like this."""

    profile: LinkProfile


@dataclass(frozen=True, slots=True)
class Cut:
    """Every connection is reset; new ones are welcome."""


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """The connections of now stay open and swallow what they are given in these directions, for good; new ones work."""

    directions: tuple[Direction, ...]


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing passes in these directions, not on new connections either, until `Heal`; then all of it does."""

    directions: tuple[Direction, ...]


@dataclass(frozen=True, slots=True)
class Heal:
    """`Silence` ends, and half-open connections are reset."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The next chunk is lost without a trace, which TCP itself never does."""

    direction: Direction


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The next chunk passes twice."""

    direction: Direction


@dataclass(frozen=True, slots=True)
class Reorder:
    """The next chunk passes after the one behind it."""

    direction: Direction


@dataclass(frozen=True, slots=True)
class Truncate:
    """Only this part of the next chunk passes, then the connection is reset."""

    direction: Direction
    part: float


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Bits of the next chunk are flipped, at places that follow from the seed."""

    direction: Direction
    flips: int
    seed: int


ChunkAction = Drop | Duplicate | Reorder | Truncate | Corrupt
LinkAction = Become | Cut | HalfOpen | Silence | Heal | ChunkAction


class Kind(enum.StrEnum):
    """Kinds of actions that can be drawn."""

    DELAY = "delay"
    CUT = "cut"
    HALF_OPEN = "half-open"
    TRUNCATE = "truncate"
    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    CORRUPT = "corrupt"


HARMLESS_IN_THE_CLEAR: Final = (Kind.DELAY, Kind.CUT, Kind.HALF_OPEN, Kind.TRUNCATE)
"""What happens to TCP connections by itself. The other kinds change the byte stream, and only encryption notices that."""


@dataclass(frozen=True, slots=True)
class Step:
    """An action and when it happens, counted from the start of the script."""

    at_s: float
    action: LinkAction


def draw_action(kind: Kind, chance: random.Random) -> LinkAction:
    """An action of a kind; what it leaves open comes from `chance`."""
    direction = chance.choice(BOTH)
    if kind is Kind.CUT:
        return Cut()
    if kind is Kind.HALF_OPEN:
        return HalfOpen(chance.choice((BOTH, (Direction.UP,), (Direction.DOWN,))))
    if kind is Kind.DELAY:
        return Become(LinkProfile("slow", delay_s=chance.uniform(0.0, 0.3), jitter_s=chance.uniform(0.0, 0.2)))
    return _draw_chunk_action(kind, direction, chance)


def _draw_chunk_action(kind: Kind, direction: Direction, chance: random.Random) -> ChunkAction:
    match kind:
        case Kind.TRUNCATE:
            return Truncate(direction, part=chance.random())
        case Kind.CORRUPT:
            return Corrupt(direction, flips=chance.randint(1, 8), seed=chance.randrange(2**32))
        case Kind.DUPLICATE:
            return Duplicate(direction)
        case Kind.REORDER:
            return Reorder(direction)
    return Drop(direction)


def draw_script(seed: int, *, steps: int, duration_s: float, kinds: Sequence[Kind] = tuple(Kind)) -> tuple[Step, ...]:
    """A script in the order of time: the same for the same arguments."""
    chance = random.Random(seed)
    times_s = sorted(chance.uniform(0.0, duration_s) for _ in range(steps))
    return tuple(Step(at_s, draw_action(chance.choice(kinds), chance)) for at_s in times_s)


def flip_bits(chunk: bytes, *, flips: int, seed: int) -> bytes:
    """The chunk with this many bits flipped, each at another place (as far as there are so many)."""
    changed = bytearray(chunk)
    for place in random.Random(seed).sample(range(8 * len(chunk)), min(flips, 8 * len(chunk))):
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)
