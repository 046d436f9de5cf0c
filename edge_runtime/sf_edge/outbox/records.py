"""What an outbox tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from sf_contract.codec import WireCodec
from sf_edge.counters import Counters
from sf_edge.sources import SourcePosition


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom an outbox belongs to, and the form of its samples."""

    bundle_id: str
    device: str
    codec: WireCodec
    hidden: int


@dataclass(frozen=True, slots=True)
class Offer:
    """A committed sample that waits for its verdict."""

    ordinal: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class SetAside:
    """A row or sample that will not be sent again: the file and line it came from, and why."""

    ordinal: int | None
    line: int
    code: str
    detail: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """What an outbox holds. `positions` has one entry for every file or pipe that rows were taken from."""

    outbox_id: str
    owner: Owner
    positions: list[SourcePosition]
    counters: Counters
    waiting_samples: int
    waiting_bytes: int
    set_aside: list[SetAside]
