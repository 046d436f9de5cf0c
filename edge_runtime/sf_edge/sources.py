"""The rows of a data file that were not taken yet, and the proof that it is still the same file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.errors import DataError
from sf_contract.limits import MIB
from sf_contract.records import BadRow, Row, read_records

SHORTEST_LOOK_INTERVAL_S: Final = 1.0
READING_SHARE: Final = 0.05
"""A watched file is read again from its start; at most this share of the time goes into that."""

_CHUNK_BYTES: Final = 1 * MIB


@dataclass(frozen=True, slots=True)
class SourcePosition:
    """How far a file was taken: the last line, and a digest over every record up to it."""

    line: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """A row and the position after it."""

    row: Row | BadRow
    position: SourcePosition


class RowSource:
    """Rows of one file after a position; with `watch` also those that are appended later.

    Args:
        path: the data file.
        position: where an earlier run stopped.
        watch: wait for appended lines, and leave a last line without its line end for later.
        clock: seconds, monotonic.
    """

    def __init__(self, path: Path, *, position: SourcePosition, watch: bool, clock: Callable[[], float]) -> None:
        self._path = path
        self._position = position
        self._watch = watch
        self._clock = clock
        self._rows: Iterator[Taken] | None = None
        self._look_started_s = 0.0
        self._seen_bytes = -1
        self.exhausted = False
        self.next_look_s = clock()

    def take(self) -> Taken | None:
        """The next row; None when there is none now (`exhausted`: none will come, else look again at `next_look_s`).

        Raises:
            DataError: the file cannot be read, or the part taken before has changed.
        """
        if self._rows is None and not self._look():
            return None
        taken = next(self._rows, None) if self._rows is not None else None
        if taken is None:
            self._end_of_file()
            return None
        self._position = taken.position
        return taken

    def _look(self) -> bool:
        """Start reading if the file may hold something new."""
        now_s = self._clock()
        if self.exhausted or now_s < self.next_look_s:
            return False
        self._look_started_s = now_s
        nbytes = _size_of(self._path)
        if nbytes == self._seen_bytes:
            self.next_look_s = now_s + SHORTEST_LOOK_INTERVAL_S
            return False
        self._seen_bytes = nbytes
        self._rows = rows_after(self._path, self._position, complete_lines_only=self._watch)
        return True

    def _end_of_file(self) -> None:
        self._rows = None
        self.exhausted = not self._watch
        now_s = self._clock()
        reading_s = now_s - self._look_started_s
        self.next_look_s = now_s + max(SHORTEST_LOOK_INTERVAL_S, reading_s / READING_SHARE)


def rows_after(path: Path, position: SourcePosition, *, complete_lines_only: bool = False) -> Iterator[Taken]:
    """Rows after a position, once the rows up to it were found unchanged.

    Raises:
        DataError: the file cannot be read, or the part up to `position` is not what was taken before.
    """
    reached = SourcePosition()
    is_checked = False
    for row in _complete_rows(path) if complete_lines_only else read_records(path):
        after = SourcePosition(line=row.line, digest=_extend(reached.digest, row))
        if row.line > position.line:
            if not is_checked:
                _check_same_file(path, found=reached, expected=position)
                is_checked = True
            yield Taken(row, after)
        reached = after
    if not is_checked:
        _check_same_file(path, found=reached, expected=position)


def _check_same_file(path: Path, *, found: SourcePosition, expected: SourcePosition) -> None:
    if found != expected:
        raise DataError(
            f"{path} is not the file this outbox took its rows from: lines 1 to {expected.line} have changed",
            cure="give the earlier file again, or give --outbox a new folder for other data",
        )


def _extend(digest: str, row: Row | BadRow) -> str:
    content = dict(row.record) if isinstance(row, Row) else None
    return hashlib.blake2b(msgspec.json.encode((digest, row.line, content), order="sorted"), digest_size=16).hexdigest()


def _complete_rows(path: Path) -> Iterator[Row | BadRow]:
    """Rows of a file that may be growing, up to the last line end it has now: a line being written is left for later."""
    lines = _complete_lines(path)
    for row in read_records(path):
        if row.line > lines:
            return
        yield row


def _complete_lines(path: Path) -> int:
    """Line ends in a file, counted as `read_records` counts them: LF, CR LF, or CR alone."""
    lines = 0
    last = b""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            split_pair = last == b"\r" and chunk.startswith(b"\n")
            lines += chunk.count(b"\n") + chunk.count(b"\r") - chunk.count(b"\r\n") - split_pair
            last = chunk[-1:]
    return lines


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read: {problem.strerror}", cure="check the path and its permissions"
        ) from problem
