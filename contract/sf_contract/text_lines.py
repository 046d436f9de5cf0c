"""Lines of UTF-8 text, and the refusal of what is no text at all.

Before the first usable row, bytes that are not UTF-8, and zero bytes, mean that the whole file is something else. After it
they are damage (a power cut leaves zero bytes at the end of a log), which costs the line that has it.
"""

from __future__ import annotations

import codecs
import contextlib
from typing import Final

from sf_contract.errors import DataError
from sf_contract.limits import MAX_RECORD_BYTES
from sf_contract.lines import Line, LineSplitter

_UTF8_MARK: Final = b"\xef\xbb\xbf"
_NOT_TEXT: Final = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it to UTF-8, for example with iconv -f UTF-32 -t UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "convert it to UTF-8, for example with iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8"),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "unpack it first"),
    (b"PK\x03\x04", "a ZIP file (spreadsheets are ZIP files too)", "unpack it, or export CSV from the spreadsheet"),
    (b"PAR1", "a Parquet file", "convert it to JSON Lines or CSV"),
    (b"SQLite format 3\x00", "an SQLite database", "export it as JSON Lines or CSV"),
    (b"%PDF-", "a PDF file", "extract its text first"),
)
"""How files begin that people take for text, what they are, and the cure."""


class UnusableLine(Exception):
    """A line that gives no row."""

    def __init__(self, number: int, reason: str) -> None:
        self.number = number
        self.reason = reason
        super().__init__(reason)


class TextLines:
    """Numbered lines of text from a splitter.

    Args:
        splitter: gives the lines.
        where: names the file or pipe in errors.
        has_rows: True when usable rows were taken before.
    """

    def __init__(self, splitter: LineSplitter, *, where: str, has_rows: bool) -> None:
        self.splitter = splitter
        self.has_rows = has_rows
        self._where = where

    def refuse_beginning_that_is_no_text(self) -> None:
        """Look at a line that has not ended yet: a binary file may have no line end at all.

        Raises:
            DataError: this is not text.
        """
        line = self.splitter.beginning_of_next_line()
        with contextlib.suppress(UnusableLine):
            self._decoded(line, line.content)

    def take(self) -> tuple[int, str] | None:
        """Number and text of the next line; None when there is none.

        Raises:
            DataError: this is not text.
            UnusableLine: the line cannot be used.
        """
        line = self.splitter.take()
        if line is None:
            return None
        content = line.content.removeprefix(_UTF8_MARK) if line.start == 0 else line.content
        text = self._decoded(line, content)
        if not line.is_whole or len(content.rstrip(b"\r\n")) > MAX_RECORD_BYTES:
            raise UnusableLine(line.number, f"the line is longer than {MAX_RECORD_BYTES} bytes")
        return line.number, text

    def _decoded(self, line: Line, content: bytes) -> str:
        if line.start == 0:
            self._refuse_known_kinds(content)
        if 0 in content:
            raise self._not_text(line, "holds a zero byte", position=content.index(0))
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(content, final=line.is_whole)
        except UnicodeDecodeError as problem:
            what = f"is not UTF-8 text: byte 0x{content[problem.start]:02x}"
            raise self._not_text(line, what, position=problem.start) from None

    def _refuse_known_kinds(self, content: bytes) -> None:
        for beginning, kind, cure in _NOT_TEXT:
            if content.startswith(beginning):
                raise DataError(f"{self._where} is {kind}, not UTF-8 text", cure=cure)

    def _not_text(self, line: Line, what: str, *, position: int) -> Exception:
        if self.has_rows:
            return UnusableLine(line.number, f"the line {what} at byte {position + 1}")
        return DataError(
            f"{self._where} is not UTF-8 text: line {line.number} {what} at byte {position + 1}",
            cure="give a text file in UTF-8; a text in another encoding is converted with iconv",
        )
