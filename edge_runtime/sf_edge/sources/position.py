"""How far a source was taken, and what every source offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sf_contract.records import BadRow, Row


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """How far a file or pipe was taken.

    Attributes:
        line: the last line taken; 0 before the first.
        digest: of all bytes up to the end of that line.
        nbytes: how many bytes these are.
        source: name of the file, or of standard input.
    """

    line: int = 0
    digest: str = ""
    nbytes: int = 0
    source: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """A row, the position after it, and the file it came from as people are told."""

    row: Row | BadRow
    position: SourcePosition
    where: str


class Source(Protocol):
    """Where rows come from. No method waits for anything."""

    @property
    def exhausted(self) -> bool:
        """No row will ever come again."""

    @property
    def next_look_s(self) -> float:
        """When `take` is worth calling again after it gave None; infinite when the descriptor tells."""

    @property
    def wake_descriptor(self) -> int | None:
        """Becomes readable when `take` may give a row again; None when the time alone tells."""

    @property
    def waits_for(self) -> str:
        """What is waited for while there is no row."""

    def take(self) -> Taken | None:
        """The next row; None when there is none now.

        Raises:
            DataError: what is read cannot be used, or is not what was taken before.
        """
