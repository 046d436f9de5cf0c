"""How long training takes when devices and server are nothing but their speeds. Pure.

The unit is the time that the server needs to train on every sample once. The ratio is the time that all devices, working at the
same time, need to compute every sample once, in this unit: at 1 they keep pace with the server.
"""

from __future__ import annotations

import msgspec


class Way(msgspec.Struct, frozen=True):
    """A way of training; the same server, the same devices, other switches.

    Attributes:
        name: for reports.
        says: one line.
        overlaps: the server trains while devices compute; else it waits until they have finished and sent everything.
        caches: devices compute and send every sample once; else in every epoch.
        one_at_a_time: devices take turns, and the server trains on one's samples before the next one begins.
    """

    name: str
    says: str
    overlaps: bool
    caches: bool
    one_at_a_time: bool = False


OURS = Way("ours", "devices compute once, all at the same time, while the server trains", overlaps=True, caches=True)
IN_TURN = Way(
    "in-turn",
    "devices one after the other: compute, send, then the server trains on it; again in every epoch",
    overlaps=False,
    caches=False,
    one_at_a_time=True,
)
AT_ONCE = Way(
    "at-once",
    "all devices compute at the same time and send, then the server trains; again in every epoch",
    overlaps=False,
    caches=False,
)
CACHED = Way("cached", "as at-once, but devices compute and send in the first epoch only", overlaps=False, caches=True)
PIPELINED = Way("pipelined", "as ours, but devices compute and send in every epoch", overlaps=True, caches=False)

WAYS = {way.name: way for way in (OURS, IN_TURN, AT_ONCE, CACHED, PIPELINED)}


def expected(way: Way, *, ratio: float, epochs: int, devices: int) -> float:
    """Wall clock of a whole training in units of the server's time for an epoch, with no overhead at all.

    Overlapping, an epoch takes as long as the slower side: `max(1, ratio)`; without, both follow one another: `1 + ratio`.
    One device at a time, the devices' work does not shrink with their number: `1 + devices * ratio`. Cached, epochs after the
    first are the server's alone: 1 each.
    """
    computing = ratio * (devices if way.one_at_a_time else 1)
    fresh = max(1.0, computing) if way.overlaps else 1.0 + computing
    return fresh + (epochs - 1) * (1.0 if way.caches else fresh)


def saving(ours: float, theirs: float) -> float:
    """Part of their wall clock that is saved, in percent."""
    return 100.0 * (1.0 - ours / theirs)
