"""Traces of removed samples: short strings of their bytes, looked for in whole files, wherever in them they may lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from sf_contract.limits import MIB

TRACE_BYTES: Final = 16
BLOCK_BYTES: Final = 4096
"""One trace is taken from every so many bytes, so that no page of a file can hold an unnoticed part of a sample."""

MOST_TRACES: Final = 500_000
_DISTINCT: Final = 8
"""A trace with fewer different bytes (padding, zeros) may be anybody's."""

_SHIFTS: Final = range(0, BLOCK_BYTES, 256)
_TABLE_BITS: Final = 24
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_CHUNK_BYTES: Final = 8 * MIB

Words = np.ndarray[Any, np.dtype[np.uint64]]


def traces_of(content: bytes, *, every: int = BLOCK_BYTES) -> list[bytes]:
    """A trace from every so many bytes of a sample's content; none where it has no telling bytes.

    It is taken from the end of a block: the rows of the first tokens are the same for all texts that begin with the same words.
    """
    blocks = (content[start : start + every] for start in range(0, len(content), every))
    return [piece for piece in map(_telling_piece, blocks) if piece is not None]


class Traces:
    """A set of byte strings of `TRACE_BYTES` each that can be looked for all at once.

    The first 8 bytes of a trace are looked up in a table of hashes for every place of the data, which costs tens of nanoseconds
    per byte however many traces there are; only what passes is compared in full.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = frozenset(pieces)
        self._heads = np.unique(np.array([int.from_bytes(p[:8], "little") for p in self._pieces], dtype=np.uint64))
        self._table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        self._table[_hashes(self._heads)] = True

    def __len__(self) -> int:
        return len(self._pieces)

    def found_in(self, content: bytes) -> frozenset[bytes]:
        """Those of the traces that the content holds, at any place."""
        found: set[bytes] = set()
        for shift in range(8 if self._pieces and len(content) >= TRACE_BYTES else 0):
            words = np.frombuffer(content, dtype="<u8", offset=shift, count=(len(content) - shift) // 8)
            for place in self._candidates(words):
                start = shift + 8 * int(place)
                piece = content[start : start + TRACE_BYTES]
                if piece in self._pieces:
                    found.add(piece)
        return frozenset(found)

    def found_in_file(self, path: Path) -> frozenset[bytes]:
        """Those of the traces that a file holds."""
        found: frozenset[bytes] = frozenset()
        rest = b""
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                content = rest + chunk
                found |= self.found_in(content)
                rest = content[-TRACE_BYTES + 1 :]
        return found

    def _candidates(self, words: Words) -> np.ndarray[Any, np.dtype[np.intp]]:
        places = np.flatnonzero(self._table[_hashes(words)])
        nearest = np.searchsorted(self._heads, words[places])
        is_head = self._heads[np.minimum(nearest, len(self._heads) - 1)] == words[places]
        return places[np.flatnonzero(is_head)]


def _hashes(words: Words) -> Words:
    return (words * _FACTOR) >> np.uint64(64 - _TABLE_BITS)


def _telling_piece(block: bytes) -> bytes | None:
    for shift in _SHIFTS:
        piece = block[max(len(block) - shift - TRACE_BYTES, 0) : max(len(block) - shift, 0)]
        if len(piece) == TRACE_BYTES and len(set(piece)) >= _DISTINCT:
            return piece
    return None
