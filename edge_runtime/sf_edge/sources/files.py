"""Rows of one file or of the files in a folder, each from where it was left; with watching also those that come later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sf_contract.errors import DataError
from sf_contract.records import RecordFormat
from sf_edge.sources.file_rows import changed, ends_within_a_line, holds, rows_after, unreadable
from sf_edge.sources.listing import FileMark, Listing
from sf_edge.sources.position import SourcePosition, Taken
from sf_edge.sources.reading_rules import ReadingRules
from sf_edge.sources.rotation import reconcile, rotated_base

SHORTEST_LOOK_INTERVAL_S: Final = 1.0
READING_SHARE: Final = 0.05
"""What was taken is read again at every look; at most this share of the time goes into that."""

Move = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a source needs from outside.

    Attributes:
        clock: seconds, monotonic.
        say: prints a line.
        move: told when rotation gave taken content another name, earlier to present, before any row of it is given.
    """

    clock: Callable[[], float]
    say: Callable[[str], None]
    move: Move


class FilesSource:
    """The rows of listed files, in the order of their names.

    Args:
        listing: which files there are.
        positions: where earlier runs stopped, by file name.
        rules: how to read them.
        watch: never end; wait for files and lines to come, and leave a last line without its line end for later.
    """

    wake_descriptor = None

    def __init__(
        self,
        listing: Listing,
        *,
        positions: Mapping[str, SourcePosition],
        rules: ReadingRules,
        watch: bool,
        around: Surroundings,
    ) -> None:
        self._listing = listing
        self._positions = dict(positions)
        self._rules = rules
        self._watch = watch
        self._around = around
        self._rows: Iterator[Taken] | None = None
        self._seen: dict[str, FileMark] | None = None
        self._read: dict[str, FileMark] = {}
        self._told: set[str] = set()
        self._rested: set[str] = set()
        self._reading_s = 0.0
        self.exhausted = False
        self.next_look_s = around.clock()
        self.waits_for = f"new lines in {listing.shown}"

    def take(self) -> Taken | None:
        """The next row; None when there is none now (`exhausted`: none will come, else look again at `next_look_s`).

        Raises:
            DataError: a file cannot be read or used, or the part taken before has changed.
        """
        if self._rows is None and not self._look():
            return None
        taken = self._next_row()
        if taken is None:
            self._end_of_look()
            return None
        self._positions[taken.position.source] = taken.position
        return taken

    def _next_row(self) -> Taken | None:
        """Only the time in here counts as reading: between two rows the outbox may be full for long."""
        started_s = self._around.clock()
        taken = next(self._rows, None) if self._rows is not None else None
        self._reading_s += self._around.clock() - started_s
        return taken

    def _look(self) -> bool:
        """Start reading if there may be something new."""
        now_s = self._around.clock()
        if self.exhausted or now_s < self.next_look_s:
            return False
        marks = self._listing.marks(self._rules, is_known=self._positions.__contains__)
        self._tell_what_is_missing(marks)
        if marks == self._seen:
            self._tell_about_open_lines(marks)
            self._reading_s += self._around.clock() - now_s
            self._plan_next_look()
            return False
        self._tell_what_is_left_alone(marks)
        self._reconcile(marks)
        self._seen = marks
        self._rows = self._rows_of(marks)
        self._reading_s += self._around.clock() - now_s
        return True

    def _reconcile(self, marks: Mapping[str, FileMark]) -> None:
        def is_there(name: str, position: SourcePosition) -> bool:
            is_as_read = name in self._read and self._read[name] == marks[name] and self._positions[name] == position
            return is_as_read or (marks[name].nbytes >= position.nbytes and holds(self._listing.path(name), position))

        known = {name: position for name, position in self._positions.items() if self._listing.may_hold(name)}
        found = reconcile(known, marks, is_there)
        if found.changed:
            name = found.changed[0]
            why = "the file was written anew, replaced or truncated"
            raise changed(self._listing.path(name), self._positions[name], now=why)
        if found.moves:
            self._follow(found.moves)

    def _follow(self, moves: Mapping[str, str]) -> None:
        for earlier, present in moves.items():
            self._around.say(f"{self._listing.path(earlier)} was rotated: the rest of it is taken from {present}")
        moved = {present: self._positions[earlier] for earlier, present in moves.items()}
        for earlier in moves:
            del self._positions[earlier]
            self._read.pop(earlier, None)
        self._positions.update(moved)
        self._around.move(moves)

    def _rows_of(self, marks: Mapping[str, FileMark]) -> Iterator[Taken]:
        for name, mark in sorted(marks.items()):
            position = self._positions.get(name, SourcePosition(source=name))
            record_format = mark.record_format or self._listing.format_of_rotated(name, self._rules)
            if self._read.get(name) == mark or not (mark.is_wanted or name in self._positions) or record_format is None:
                continue
            yield from self._rows_of_one(name, position, record_format)
            self._read[name] = mark

    def _rows_of_one(self, name: str, position: SourcePosition, record_format: RecordFormat) -> Iterator[Taken]:
        path = self._listing.path(name)
        try:
            yield from rows_after(
                path, position, rules=self._rules, record_format=record_format, is_growing=self._watch
            )
        except DataError as problem:
            if not isinstance(problem.__cause__, FileNotFoundError) or not (self._watch or self._listing.is_folder):
                raise

    def _end_of_look(self) -> None:
        self._rows = None
        self.exhausted = not self._watch
        self._plan_next_look()

    def _plan_next_look(self) -> None:
        pause_s = max(SHORTEST_LOOK_INTERVAL_S, self._reading_s / READING_SHARE)
        self.next_look_s = self._around.clock() + pause_s
        self._reading_s = 0.0

    def _tell_what_is_missing(self, marks: Mapping[str, FileMark]) -> None:
        """A single file that is not there is waited for when watching; otherwise it is an error."""
        wanted = self._listing.only
        if wanted is None or wanted in marks:
            self._told.discard("gone")
            return
        path = self._listing.path(wanted)
        if not self._watch:
            raise unreadable(path, FileNotFoundError(2, "No such file or directory"))
        self._tell_once("gone", f"{path} is gone; waiting until it is there again")

    def _tell_what_is_left_alone(self, marks: Mapping[str, FileMark]) -> None:
        """Files of a folder whose names do not tell their format."""
        names = [name for name, mark in sorted(marks.items()) if not mark.is_wanted and rotated_base(name) == name]
        if names:
            self._tell_once(
                "left alone",
                f"{self._listing.shown}: {len(names)} files are left alone, as their names do not tell their format "
                f"(.jsonl, .ndjson, .json, .csv, .txt); the first is {names[0]}",
            )

    def _tell_about_open_lines(self, marks: Mapping[str, FileMark]) -> None:
        """A file that rests without a line end is not finished: say so, or its last line would wait in silence."""
        for name, mark in marks.items():
            position = self._positions.get(name, SourcePosition())
            if mark.is_wanted and mark.nbytes > position.nbytes and name not in self._rested:
                self._tell_if_open(name, position)

    def _tell_if_open(self, name: str, position: SourcePosition) -> None:
        path = self._listing.path(name)
        try:
            is_open = ends_within_a_line(path, position.nbytes)
        except DataError:  # it has just gone; the next look finds that
            return
        self._rested.add(name)
        if is_open:
            self._around.say(f"{path}: the last line has no line end yet, and is taken when it has one")

    def _tell_once(self, what: str, line: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._around.say(line)
