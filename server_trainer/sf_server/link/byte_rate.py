"""How many bytes a device may send per second: a bucket that fills at that rate and that every arrival empties. Pure."""

from __future__ import annotations

from typing import Final

from sf_contract.limits import KIB

SMALLEST_BURST_BYTES: Final = 64 * KIB
BURST_S: Final = 1.0
GRANT_PART: Final = 0.25
"""Nothing is granted below this part of a burst, so that grants are few."""

LONGEST_DEBT_S: Final = 30.0


class ByteRate:
    """The bucket of one device. Times are seconds of one clock.

    Args:
        bytes_per_s: the rate.
        now_s: the time at the start, when the bucket is full.
    """

    def __init__(self, bytes_per_s: float, *, now_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self.burst_bytes = max(SMALLEST_BURST_BYTES, bytes_per_s * BURST_S)
        self._room_bytes = self.burst_bytes
        self._updated_s = now_s

    def charge(self, nbytes: int, *, now_s: float) -> float:
        """Something arrived; seconds that its sender was too early, 0 when there was room for it to begin."""
        self._fill(now_s)
        early_s = max(0.0, -self._room_bytes / self._bytes_per_s)
        self._room_bytes = max(self._room_bytes - nbytes, -LONGEST_DEBT_S * self._bytes_per_s)
        return early_s

    def credit_bytes(self, most_bytes: int, *, now_s: float) -> int:
        """What may be granted now, at most so much; 0 until there is room for a good part of a burst."""
        self._fill(now_s)
        if self._room_bytes < GRANT_PART * self.burst_bytes:
            return 0
        return min(most_bytes, int(self._room_bytes))

    def is_full(self, *, now_s: float) -> bool:
        """True when its device has not sent for a while, so that forgetting it changes nothing."""
        self._fill(now_s)
        return self._room_bytes >= self.burst_bytes

    def _fill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._updated_s)
        self._updated_s = now_s
        self._room_bytes = min(self.burst_bytes, self._room_bytes + passed_s * self._bytes_per_s)
