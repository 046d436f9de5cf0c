"""Rows of standard input: a pipe that cannot be read twice.

It is read only when it has bytes, so acknowledgements are handled while it is silent: its descriptor stands in the same poll
as the server's socket. A reader thread would do as well, but would hold rows that nobody has asked for; and switching the
descriptor to non-blocking would change it for every other process that shares it, a shell among them.
"""

from __future__ import annotations

import os
import select
from typing import Final

from sf_contract.errors import DataError
from sf_contract.limits import KIB
from sf_contract.lines import LineSplitter
from sf_contract.records import BadRow, RecordFormat, Row
from sf_edge.sources.position import SourcePosition, Taken
from sf_edge.sources.reading_rules import ReadingRules

STREAM_NAME: Final = "/dev/stdin"
"""No file in a folder has a slash in its name."""

SHOWN: Final = "standard input"

_CHUNK_BYTES: Final = 8 * KIB
"""Small: what was read and not computed yet is lost when the process ends, while the pipe may outlive it."""

_READABLE: Final = select.POLLIN | select.POLLHUP | select.POLLERR | select.POLLNVAL


class StreamSource:
    """Rows of an open descriptor until its end; line numbers go on after `position`.

    A row counts as taken when its sample is committed; it is never asked for again, whatever happens to the pipe.
    """

    next_look_s = float("inf")
    waits_for = f"rows on {SHOWN}"

    def __init__(self, descriptor: int, *, position: SourcePosition, rules: ReadingRules) -> None:
        self._descriptor = descriptor
        self._parser = rules.parser(
            rules.record_format or RecordFormat.JSONL, where=SHOWN, splitter=LineSplitter(number=position.line)
        )
        self._bytes_before = position.nbytes
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._has_ended = False
        self.exhausted = False

    @property
    def wake_descriptor(self) -> int | None:
        """Becomes readable when rows may be there."""
        return None if self._has_ended else self._descriptor

    def take(self) -> Taken | None:
        """The next row; None when there is none now.

        Raises:
            DataError: the descriptor cannot be read, or gives no text.
        """
        while (row := self._parser.take()) is None:
            self._parser.refuse_beginning_that_is_no_text()
            if self._has_ended:
                self.exhausted = True
                return None
            if not self._read():
                return self._taken(self._last_row_for_now())
        return self._taken(row)

    def _last_row_for_now(self) -> Row | BadRow | None:
        self._parser.pause()
        return self._parser.take()

    def _taken(self, row: Row | BadRow | None) -> Taken | None:
        if row is None:
            return None
        splitter = self._parser.splitter
        position = SourcePosition(line=splitter.number, nbytes=self._bytes_before + splitter.nbytes, source=STREAM_NAME)
        return Taken(row=row, position=position, where=SHOWN)

    def _read(self) -> bool:
        """Read what is there; False when nothing is, for now."""
        try:
            if not any(events & _READABLE for _, events in self._poll.poll(0)):
                return False
            chunk = os.read(self._descriptor, _CHUNK_BYTES)
        except OSError as problem:
            raise DataError(
                f"{SHOWN} cannot be read: {problem.strerror}", cure="connect it to a pipe or a file"
            ) from problem
        if chunk:
            self._parser.feed(chunk)
        else:
            self._has_ended = True
            self._parser.end()
        return True
