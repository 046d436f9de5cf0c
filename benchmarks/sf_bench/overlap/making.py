"""When emulated devices have their samples: nothing is computed, time passes as if it were. Pure."""

from __future__ import annotations

from typing import Final

IN_FLIGHT_BYTES: Final = 1 << 20


class Batchwise:
    """Samples that are there when they are let go: a device that computes a while and then sends everything."""

    def __init__(self) -> None:
        self.in_flight_bytes = IN_FLIGHT_BYTES
        self.is_endless = False
        self._made = 0

    def let_go(self, samples: int) -> None:
        """So many more have been computed."""
        self._made += samples

    def made(self, passed_s: float) -> float:
        """Samples let go so far, whatever the time."""
        del passed_s
        return self._made

    def made_s(self, ordinal: int) -> float:
        """Not known to it."""
        del ordinal
        return 0.0

    def next_s(self, passed_s: float) -> float | None:
        """Never by the passing of time."""
        del passed_s
        return None


def share(samples: int, devices: int, number: int) -> int:
    """Samples of one device, as even as they can be."""
    return samples // devices + (number < samples % devices)
