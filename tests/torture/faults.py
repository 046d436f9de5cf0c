"""Which faults happen, in which order: drawn from a seed, the same for the same seed."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sf_bench.link_script import Kind as LinkKind
from sf_bench.link_script import LinkAction, draw_action


class Fault(enum.StrEnum):
    """What can happen to a process or its disk; what can happen to a link are `LinkKind`s."""

    KILL_EDGE = "kill -9 edge"
    STOP_EDGE = "SIGSTOP edge"
    EDGE_DISK_FULL = "device disk full"
    KILL_INGEST = "kill -9 ingest"
    STOP_INGEST = "SIGSTOP ingest"
    INGEST_DISK_FULL = "server disk full"
    STORE_FULL = "store quota full"


EDGE_WEIGHTS: Final = {Fault.KILL_EDGE: 4, Fault.STOP_EDGE: 3, Fault.EDGE_DISK_FULL: 1}
LINK_WEIGHTS: Final = dict.fromkeys(LinkKind, 2)
SERVER_WEIGHTS: Final = {Fault.KILL_INGEST: 12, Fault.STOP_INGEST: 10, Fault.INGEST_DISK_FULL: 2}
SERVER_SHARE: Final = 0.12
"""Of all faults, so many happen to the server."""

STORE_FULL_EVERY: Final = 60
"""Every so many faults the store's quota is reached: everybody has to wait then, so it is not left to chance."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault.

    Attributes:
        kind: what it is.
        lasts_s: for those that last.
        action: for those of the link.
    """

    kind: Fault | LinkKind
    lasts_s: float
    action: LinkAction | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Faults of the server, and of each device and its link. Those of one list happen one after another."""

    server: tuple[Planned, ...]
    devices: tuple[tuple[Planned, ...], ...]

    @property
    def faults(self) -> int:
        """How many there are."""
        return len(self.server) + sum(map(len, self.devices))


def draw_plan(seed: int, *, faults: int, devices: int, link_kinds: Sequence[LinkKind]) -> Plan:
    """So many faults, spread over the server and the devices. The first device is never killed, so that leaks would show."""
    chance = random.Random(seed)
    full = max(1, faults // STORE_FULL_EVERY)
    of_server = max(full + 1, round(faults * SERVER_SHARE))
    server = [_draw(chance, SERVER_WEIGHTS) for _ in range(of_server - full)]
    for number in range(full):
        server.insert(round((number + 0.5) * len(server) / full), _planned(Fault.STORE_FULL, chance))
    link = {kind: LINK_WEIGHTS[kind] for kind in link_kinds}
    lists: list[tuple[Planned, ...]] = []
    for index in range(devices):
        share = (faults - of_server) // devices + (index < (faults - of_server) % devices)
        process = {Fault.STOP_EDGE: 2} if index == 0 else EDGE_WEIGHTS
        lists.append(tuple(_draw(chance, {**process, **link}) for _ in range(share)))
    return Plan(server=tuple(server), devices=tuple(lists))


def _draw(chance: random.Random, weights: dict[Fault, int] | dict[Fault | LinkKind, int]) -> Planned:
    (kind,) = chance.choices(list(weights), list(weights.values()))
    return _planned(kind, chance)


def _planned(kind: Fault | LinkKind, chance: random.Random) -> Planned:
    action = draw_action(kind, chance) if isinstance(kind, LinkKind) else None
    return Planned(kind, lasts_s=chance.uniform(0.05, 1.2), action=action)
