"""The rows of one file that were not taken yet, and the proof that what was taken is still there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from sf_contract.errors import DataError
from sf_contract.limits import KIB
from sf_contract.lines import LineSplitter
from sf_contract.records import RecordFormat, RecordParser
from sf_edge.sources.position import SourcePosition, Taken
from sf_edge.sources.reading_rules import ReadingRules

_CHUNK_BYTES: Final = 256 * KIB


def holds(path: Path, position: SourcePosition) -> bool:
    """True when the file begins with the bytes that were taken up to a position.

    Raises:
        DataError: the file cannot be read.
    """
    if position.nbytes == 0:
        return True
    splitter = LineSplitter()
    try:
        with path.open("rb") as stream:
            return _pass_over(stream, splitter, position.nbytes) and splitter.digest() == position.digest
    except OSError as problem:
        raise unreadable(path, problem) from problem


def rows_after(
    path: Path, position: SourcePosition, *, rules: ReadingRules, record_format: RecordFormat, is_growing: bool = False
) -> Iterator[Taken]:
    """Rows after a position.

    Args:
        is_growing: leave a last line without its line end for later.

    Raises:
        DataError: the file cannot be read, is no such file, or the part up to `position` is not what was taken before.
    """
    try:
        with path.open("rb") as stream:
            parser = _parser_at(stream, path, position, rules=rules, record_format=record_format)
            while chunk := stream.read(_CHUNK_BYTES):
                parser.feed(chunk)
                yield from _taken(parser, path)
            if os.fstat(stream.fileno()).st_size < parser.splitter.nbytes:
                raise changed(path, position, now="it was truncated while it was read")
    except OSError as problem:
        raise unreadable(path, problem) from problem
    if is_growing:
        parser.pause()
        yield from _taken(parser, path)
        parser.refuse_beginning_that_is_no_text()
        return
    parser.end()
    yield from _taken(parser, path)


def ends_within_a_line(path: Path, nbytes: int) -> bool:
    """True when a file has bytes but no line end behind the first `nbytes` bytes.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(max(nbytes, stream.seek(0, os.SEEK_END) - 1))
            return stream.read(1) not in (b"", b"\n", b"\r")
    except OSError as problem:
        raise unreadable(path, problem) from problem


def changed(path: Path, position: SourcePosition, *, now: str) -> DataError:
    """The error about a file whose part taken before is not there any more."""
    return DataError(
        f"{path} is not the file this outbox took its rows from: lines 1 to {position.line} have changed ({now})",
        cure="put the earlier content back and append to it, or give new data a new file name; "
        "--outbox with a new folder would send everything again",
    )


def unreadable(path: Path, problem: OSError) -> DataError:
    """The error about a file that cannot be read."""
    return DataError(f"{path} cannot be read: {problem.strerror}", cure="check the path and its permissions")


def _parser_at(
    stream: BinaryIO, path: Path, position: SourcePosition, *, rules: ReadingRules, record_format: RecordFormat
) -> RecordParser:
    if position.nbytes == 0:
        return rules.parser(record_format, where=str(path))
    header = _csv_header(path, rules) if record_format is RecordFormat.CSV else None
    splitter = LineSplitter(number=position.line)
    if not _pass_over(stream, splitter, position.nbytes) or splitter.digest() != position.digest:
        raise changed(path, position, now="the file was written anew, replaced or truncated")
    _pass_end_of_last_line(stream, splitter, path, position)
    return rules.parser(record_format, where=str(path), splitter=splitter, header=header)


def _pass_over(stream: BinaryIO, splitter: LineSplitter, nbytes: int) -> bool:
    """Pass over the first bytes of a file; False when it has less."""
    while nbytes > 0 and (chunk := stream.read(min(_CHUNK_BYTES, nbytes))):
        splitter.pass_over(chunk)
        nbytes -= len(chunk)
    return nbytes == 0


def _pass_end_of_last_line(stream: BinaryIO, splitter: LineSplitter, path: Path, position: SourcePosition) -> None:
    """A last line that had no end when it was taken may have got one since; anything else is another line."""
    stream.seek(position.nbytes - 1)
    if stream.read(1) in (b"\n", b"\r"):
        return
    following = stream.read(1)
    if following not in (b"", b"\n", b"\r"):
        raise changed(path, position, now=f"line {position.line} went on after it was taken")
    splitter.pass_over(following)


def _csv_header(path: Path, rules: ReadingRules) -> list[str] | None:
    parser = rules.parser(RecordFormat.CSV, where=str(path))
    with path.open("rb") as stream:
        while (header := parser.header()) is None and (chunk := stream.read(_CHUNK_BYTES)):
            parser.feed(chunk)
    return header


def _taken(parser: RecordParser, path: Path) -> Iterator[Taken]:
    for row in parser.rows():
        splitter = parser.splitter
        position = SourcePosition(
            line=splitter.number, digest=splitter.digest(), nbytes=splitter.nbytes, source=path.name
        )
        yield Taken(row=row, position=position, where=str(path))
