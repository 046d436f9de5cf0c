"""Data files: JSON Lines (`.jsonl`, `.json`, `.ndjson`) and CSV (`.csv`), one record per line.

Bad rows do not end the reading: they come out as `BadRow`, with their line number, for the caller to count and report.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from sf_contract.errors import DataError
from sf_contract.limits import MAX_RECORD_BYTES

JSON_LINES_SUFFIXES: Final = frozenset({".jsonl", ".ndjson", ".json"})
CSV_SUFFIXES: Final = frozenset({".csv"})

Record = Mapping[str, str]


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


_Reader = Callable[[TextIO, Path], Iterator[Row | BadRow]]


def read_records(path: Path, *, after_line: int = 0) -> Iterator[Row | BadRow]:
    """Records of a file in order, skipping those that end at or before `after_line`.

    Raises:
        DataError: the file is missing, unreadable, of an unknown kind, or not UTF-8 text.
    """
    reader = _reader_for(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for row in reader(stream, path):
                if row.line > after_line:
                    yield row
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{path} is not UTF-8 text (byte {problem.start})", cure="convert the file to UTF-8"
        ) from problem
    except OSError as problem:
        raise DataError(
            f"{path} cannot be read: {problem.strerror}", cure="check the path and its permissions"
        ) from problem


def _reader_for(path: Path) -> _Reader:
    suffix = path.suffix.lower()
    if suffix in JSON_LINES_SUFFIXES:
        return _json_lines
    if suffix in CSV_SUFFIXES:
        return _csv_rows
    raise DataError(
        f"{path} has the unknown ending {suffix!r}; known are .jsonl, .ndjson, .json and .csv",
        cure="rename the file after its format",
    )


def _json_lines(stream: TextIO, path: Path) -> Iterator[Row | BadRow]:
    del path
    number = 0
    while text := stream.readline(MAX_RECORD_BYTES):
        number += 1
        if len(text) == MAX_RECORD_BYTES and not text.endswith("\n"):
            _skip_rest_of_line(stream)
            yield BadRow(number, f"the line is longer than {MAX_RECORD_BYTES} characters")
        elif text.strip():
            yield _json_row(number, text)


def _skip_rest_of_line(stream: TextIO) -> None:
    while (rest := stream.readline(MAX_RECORD_BYTES)) and not rest.endswith("\n"):
        pass


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


def _csv_rows(stream: TextIO, path: Path) -> Iterator[Row | BadRow]:
    reader = csv.reader(stream, strict=True)
    header = _csv_header(reader, path)
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            yield BadRow(reader.line_num, f"not CSV: {problem}")
            continue
        if not values:
            continue
        if len(values) != len(header):
            yield BadRow(reader.line_num, f"expected {len(header)} columns, found {len(values)}")
        else:
            yield Row(reader.line_num, dict(zip(header, values, strict=True)))


def _csv_header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as problem:
        raise DataError(f"{path}, line 1 is not CSV: {problem}", cure="give a CSV file with a header line") from problem
    if not header or len(set(header)) != len(header):
        raise DataError(f"{path} has no usable header line: {header}", cure="name every column once in the first line")
    return header
