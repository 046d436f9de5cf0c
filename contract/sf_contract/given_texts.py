"""Texts that a person asks about: from the command line, from a file, or line by line from standard input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sf_contract.records import BadRow, RecordFormat, RecordParser, Row, read_records

GIVEN_TEXTS_HELP = "a text; where the template has several columns, a JSON object with them"


def given_texts(
    texts: Sequence[str], *, fields: Sequence[str], path: Path | None, lines: Iterable[str]
) -> Iterator[Row | BadRow]:
    """Rows to answer, in their order, read as they are asked for.

    Args:
        texts: what the command line holds; when it holds nothing, and there is no file, `lines` are taken.
        fields: columns of the bundle's template. With a single one a text is its value, else a JSON object.
        path: a data file.
        lines: of standard input.

    Raises:
        DataError: the file cannot be read.
    """
    if path is not None:
        yield from read_records(path)
        return
    for number, text in enumerate(texts or (line for line in lines if line.strip()), start=1):
        yield _row(number, text.rstrip("\n"), fields)


def _row(number: int, text: str, fields: Sequence[str]) -> Row | BadRow:
    if len(fields) == 1:
        return Row(number, {fields[0]: text})
    wanted = ", ".join(fields)
    parser = RecordParser(RecordFormat.JSONL, where="the given text")
    parser.feed(text.replace("\n", " ").encode("utf-8", "replace") + b"\n")
    found = parser.take()
    if isinstance(found, Row):
        return Row(number, found.record)
    why = "" if found is None else f" ({found.reason})"
    return BadRow(number, f"the template has the columns {wanted}, so a text must be a JSON object with them{why}")
