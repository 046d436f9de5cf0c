"""Which samples of an epoch are done, one bit for each: so "exactly once in every epoch" is counted and not believed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

Bits = np.ndarray[Any, np.dtype[np.uint8]]

_LEAST_BYTES: Final = 64


class Marks:
    """A growing set of `seq` numbers; a million samples are 125 kB.

    Args:
        bits: what `bits` gave, to go on from there.
    """

    def __init__(self, bits: Bits | None = None) -> None:
        self._bits: Bits = np.zeros(_LEAST_BYTES, dtype=np.uint8) if bits is None else bits.copy()
        self._count = int(np.bitwise_count(self._bits).sum())

    def __contains__(self, seq: int) -> bool:
        byte, bit = divmod(seq, 8)
        return byte < len(self._bits) and bool(self._bits[byte] >> bit & 1)

    def __len__(self) -> int:
        return self._count

    def add(self, seqs: Sequence[int]) -> int | None:
        """Mark these; the first one that was marked already, if there is one."""
        for seq in seqs:
            if seq in self:
                return seq
            byte, bit = divmod(seq, 8)
            if byte >= len(self._bits):
                self._bits = np.concatenate([self._bits, np.zeros(byte + 1, dtype=np.uint8)])
            self._bits[byte] |= 1 << bit
            self._count += 1
        return None

    def bits(self) -> Bits:
        """The set as bytes, bit `seq % 8` of byte `seq // 8`; no more of them than needed."""
        used = np.flatnonzero(self._bits)
        return self._bits[: used[-1] + 1 if len(used) else 0].copy()
