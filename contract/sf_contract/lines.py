"""Bytes, as they come, into lines: bounded memory, a count and a digest of what was taken."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sf_contract.hashes import blake2b
from sf_contract.limits import MAX_RECORD_BYTES

_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        number: 1 is the first line.
        start: bytes before it.
        content: the line with its end; of a line longer than `MAX_RECORD_BYTES` only so much of its beginning.
        is_whole: False when the line was longer than that.
    """

    number: int
    start: int
    content: bytes
    is_whole: bool


class LineSplitter:
    """Lines end with LF, CR LF or CR. What is fed is held until its line has ended, but never more than a line may have.

    Attributes:
        number: lines taken.
        nbytes: bytes taken. A line too long to be kept counts while it passes.
    """

    def __init__(self, *, number: int = 0) -> None:
        self.number = number
        self.nbytes = 0
        self.has_ended = False
        self._hasher = blake2b(digest_size=_DIGEST_BYTES)
        self._buffer = bytearray()
        self._searched = 0
        self._beginning: bytes | None = None
        self._start = 0
        self._after_cr = False
        self._is_paused = False

    def digest(self) -> str:
        """BLAKE2b of all bytes taken."""
        return self._hasher.hexdigest()

    @property
    def holds_part_of_a_line(self) -> bool:
        """True when bytes wait for the end of their line (once `take` has given None)."""
        return bool(self._buffer) or self._beginning is not None

    def beginning_of_next_line(self) -> Line:
        """What is there of the line that has not ended yet."""
        start = self.nbytes if self._beginning is None else self._start
        content = self._beginning or bytes(self._buffer[:MAX_RECORD_BYTES])
        return Line(number=self.number + 1, start=start, content=content, is_whole=False)

    def pass_over(self, chunk: bytes) -> None:
        """Count and digest bytes whose lines were taken before."""
        self._hasher.update(chunk)
        self.nbytes += len(chunk)
        self._after_cr = chunk.endswith(b"\r")

    def feed(self, chunk: bytes) -> None:
        """Add bytes."""
        self._buffer += chunk
        self._is_paused = False

    def pause(self) -> None:
        """No more bytes come for now: a CR at the end of what is there ends its line, though an LF may follow it later."""
        self._is_paused = True

    def end(self) -> None:
        """No more bytes will come: what is there is the last line, with or without its end."""
        self.has_ended = True

    def take(self) -> Line | None:
        """The next line; None when more bytes are needed (or, at the end, when there is none)."""
        self._pass_second_half_of_line_end()
        found = _LINE_END.search(self._buffer, self._searched)
        if found is not None and not self._may_be_half_of_line_end(found):
            return self._line(found.end())
        self._searched = len(self._buffer) if found is None else found.start()
        if self.has_ended and self.holds_part_of_a_line:
            return self._line(len(self._buffer))
        if len(self._buffer) > MAX_RECORD_BYTES:
            self._drop(len(self._buffer))
        return None

    def _pass_second_half_of_line_end(self) -> None:
        if self._after_cr and self._buffer:
            if self._buffer.startswith(b"\n"):
                self._pass(1)
            self._after_cr = False

    def _may_be_half_of_line_end(self, found: re.Match[bytes]) -> bool:
        is_last = found.end() == len(self._buffer)
        return found[0] == b"\r" and is_last and not (self.has_ended or self._is_paused)

    def _line(self, nbytes: int) -> Line:
        start = self.nbytes if self._beginning is None else self._start
        is_whole = self._beginning is None and nbytes <= MAX_RECORD_BYTES + len(b"\r\n")
        content = (
            bytes(self._buffer[:nbytes]) if is_whole else self._beginning or bytes(self._buffer[:MAX_RECORD_BYTES])
        )
        self._after_cr = nbytes > 0 and self._buffer[nbytes - 1] == ord("\r")
        self._pass(nbytes)
        self._beginning = None
        self.number += 1
        return Line(number=self.number, start=start, content=content, is_whole=is_whole)

    def _drop(self, nbytes: int) -> None:
        if self._beginning is None:
            self._beginning = bytes(self._buffer[:MAX_RECORD_BYTES])
            self._start = self.nbytes
        self._pass(nbytes)

    def _pass(self, nbytes: int) -> None:
        self._hasher.update(self._buffer[:nbytes])
        del self._buffer[:nbytes]
        self.nbytes += nbytes
        self._searched = 0
