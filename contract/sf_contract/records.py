"""Records of data files and pipes: JSON Lines, CSV, or plain text with one text per line.

Bad rows do not end the reading: they come out as `BadRow`, with their line number, for the caller to count and report.
What is not text at all is refused as a whole: bytes that are not UTF-8, or zero bytes, before the first usable row.
"""

from __future__ import annotations

import csv
import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from sf_contract.errors import DataError
from sf_contract.limits import MAX_RECORD_BYTES
from sf_contract.lines import LineSplitter
from sf_contract.text_lines import TextLines, UnusableLine

JSON_LINES_SUFFIXES: Final = frozenset({".jsonl", ".ndjson", ".json"})
CSV_SUFFIXES: Final = frozenset({".csv"})
TEXT_SUFFIXES: Final = frozenset({".txt"})

_CHUNK_BYTES: Final = 256 * 1024

Record = Mapping[str, str]


class RecordFormat(enum.StrEnum):
    """How records are written."""

    JSONL = "jsonl"
    CSV = "csv"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Row:
    """A usable record and the line it ends on (1 is the first line)."""

    line: int
    record: Record


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that is not a record, and why."""

    line: int
    reason: str


def read_records(
    path: Path, *, after_line: int = 0, record_format: RecordFormat | None = None, text_field: str | None = None
) -> Iterator[Row | BadRow]:
    """Records of a file in order, skipping those that end at or before `after_line`.

    Args:
        record_format: how it is written; None goes by the ending of its name.
        text_field: the column that a line of plain text fills; None refuses plain text.

    Raises:
        DataError: the file is missing, unreadable, of an unknown kind, or not UTF-8 text.
    """
    wanted = record_format or format_of(path)
    if wanted is None or (wanted is RecordFormat.TEXT and text_field is None):
        known = sorted(JSON_LINES_SUFFIXES | CSV_SUFFIXES | (TEXT_SUFFIXES if text_field else frozenset()))
        raise DataError(
            f"{path} has the unknown ending {path.suffix.lower()!r}; known are {', '.join(known)}",
            cure="rename the file after its format",
        )
    parser = RecordParser(wanted, where=str(path), text_field=text_field or "")
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                parser.feed(chunk)
                yield from (row for row in parser.rows() if row.line > after_line)
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read: {problem.strerror}", cure="check the path and its permissions"
        ) from problem
    parser.end()
    yield from (row for row in parser.rows() if row.line > after_line)


def format_of(path: Path) -> RecordFormat | None:
    """The format that the ending of a name stands for; None when it stands for none."""
    suffix = path.suffix.lower()
    if suffix in JSON_LINES_SUFFIXES:
        return RecordFormat.JSONL
    if suffix in CSV_SUFFIXES:
        return RecordFormat.CSV
    return RecordFormat.TEXT if suffix in TEXT_SUFFIXES else None


class RecordParser:
    """Rows out of bytes, as they come.

    Args:
        record_format: how the records are written.
        where: names the file or pipe in errors.
        text_field: the column that a line of plain text fills.
        splitter: one that has passed over the lines taken before; None starts at the beginning.
        header: the columns of a CSV file whose header line was taken before.
        has_rows: True when usable rows were taken before.

    Attributes:
        splitter: counts lines and bytes up to the end of the row that was taken last.
    """

    def __init__(
        self,
        record_format: RecordFormat,
        *,
        where: str,
        text_field: str = "",
        splitter: LineSplitter | None = None,
        header: list[str] | None = None,
        has_rows: bool = False,
    ) -> None:
        self.splitter = splitter or LineSplitter()
        self._lines = TextLines(self.splitter, where=where, has_rows=has_rows)
        self._rows: _Rows
        match record_format:
            case RecordFormat.JSONL:
                self._rows = _JsonRows(self._lines)
            case RecordFormat.CSV:
                self._rows = _CsvRows(self._lines, where=where, header=header)
            case RecordFormat.TEXT:
                self._rows = _TextRows(self._lines, text_field)

    def feed(self, chunk: bytes) -> None:
        """Add bytes."""
        self.splitter.feed(chunk)

    def pause(self) -> None:
        """No more bytes come for now."""
        self.splitter.pause()

    def end(self) -> None:
        """No more bytes will come."""
        self.splitter.end()

    def rows(self) -> Iterator[Row | BadRow]:
        """Rows that the bytes so far give."""
        while (row := self.take()) is not None:
            yield row

    def take(self) -> Row | BadRow | None:
        """The next row; None when more bytes are needed (or, at the end, when there is none).

        Raises:
            DataError: this is not text, or a CSV header cannot be used.
        """
        try:
            row = self._rows.take()
        except UnusableLine as problem:
            return BadRow(problem.number, problem.reason)
        self._lines.has_rows = self._lines.has_rows or isinstance(row, Row)
        return row

    def header(self) -> list[str] | None:
        """The columns of a CSV file, once its first line is there; None for other formats.

        Raises:
            DataError: as `take`.
        """
        return self._rows.header() if isinstance(self._rows, _CsvRows) else None

    def refuse_beginning_that_is_no_text(self) -> None:
        """Look at a line that has not ended yet: a binary file may have no line end at all.

        Raises:
            DataError: this is not text.
        """
        self._lines.refuse_beginning_that_is_no_text()


class _Rows(Protocol):
    def take(self) -> Row | BadRow | None: ...


class _JsonRows:
    def __init__(self, lines: TextLines) -> None:
        self._lines = lines

    def take(self) -> Row | BadRow | None:
        while (line := self._lines.take()) is not None:
            number, text = line
            if text.strip():
                return _json_row(number, text)
        return None


def _json_row(number: int, text: str) -> Row | BadRow:
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            return BadRow(number, f"expected a JSON object, found {type(value).__name__}")
        record = {key: _as_text(item) for key, item in value.items() if item is not None}
        "".join((*record, *record.values())).encode()
    except UnicodeEncodeError:
        return BadRow(number, "holds half of a surrogate pair, which is not a character")
    except (ValueError, RecursionError) as problem:
        return BadRow(number, f"not JSON: {problem}")
    return Row(number, record)


def _as_text(item: object) -> str:
    if isinstance(item, str):
        return item
    return json.dumps(item, ensure_ascii=False)


class _TextRows:
    def __init__(self, lines: TextLines, field: str) -> None:
        self._lines = lines
        self._field = field

    def take(self) -> Row | None:
        while (line := self._lines.take()) is not None:
            number, text = line
            if text.strip():
                return Row(number, {self._field: text.rstrip("\r\n")})
        return None


class _CsvRows:
    """A record may have several lines: when they run out inside one, they are given again once more have come."""

    def __init__(self, lines: TextLines, *, where: str, header: list[str] | None) -> None:
        self._lines = _CsvLines(lines)
        self._reader = csv.reader(self._lines, strict=True)
        self._where = where
        self._header = header

    def header(self) -> list[str] | None:
        if self._header is None:
            self._header = self._read_header()
        return self._header

    def take(self) -> Row | BadRow | None:
        header = self.header()
        while header is not None:
            try:
                values = self._next_values()
            except csv.Error as problem:
                return BadRow(self._lines.number, f"not CSV: {problem}")
            if values is None:
                return None
            if values:
                return _csv_row(self._lines.number, values, header)
        return None

    def _next_values(self) -> list[str] | None:
        try:
            values = next(self._reader, None)
        except _MoreLinesNeeded:
            self._lines.give_again()
            return None
        except (csv.Error, UnusableLine):
            self._lines.forget()
            raise
        self._lines.forget()
        return values

    def _read_header(self) -> list[str] | None:
        try:
            header = self._next_values()
        except csv.Error as problem:
            raise DataError(
                f"{self._where}, line 1 is not CSV: {problem}", cure="give a CSV file with a header line"
            ) from problem
        except UnusableLine as problem:
            raise DataError(
                f"{self._where} has no usable header line: {problem.reason}", cure="give a CSV file with a header line"
            ) from problem
        if header is None and not self._lines.has_ended:
            return None
        if not header or len(set(header)) != len(header):
            raise DataError(
                f"{self._where} has no usable header line: {header or []}",
                cure="name every column once in the first line",
            )
        return header


def _csv_row(number: int, values: list[str], header: list[str]) -> Row | BadRow:
    if len(values) != len(header):
        return BadRow(number, f"expected {len(header)} columns, found {len(values)}")
    return Row(number, dict(zip(header, values, strict=True)))


class _MoreLinesNeeded(Exception):
    """The lines ran out; more may come."""


class _CsvLines:
    """The lines of the record that is being read, for `csv.reader`."""

    def __init__(self, lines: TextLines) -> None:
        self._source = lines
        self._record: list[str] = []
        self._given = 0
        self._length = 0
        self.number = lines.splitter.number

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        if self._given == len(self._record):
            self._pull()
        self._given += 1
        return self._record[self._given - 1]

    @property
    def has_ended(self) -> bool:
        return self._source.splitter.has_ended

    def give_again(self) -> None:
        """The record is not complete: its lines come again."""
        self._given = 0

    def forget(self) -> None:
        """The record is over."""
        self._record.clear()
        self._given = 0
        self._length = 0

    def _pull(self) -> None:
        line = self._source.take()
        if line is None:
            raise StopIteration if self.has_ended else _MoreLinesNeeded
        self.number, text = line
        self._length += len(text)
        if self._length > MAX_RECORD_BYTES + len("\r\n"):
            raise UnusableLine(self.number, f"the record is longer than {MAX_RECORD_BYTES} bytes")
        self._record.append(text)
