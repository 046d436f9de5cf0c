"""Which files a source may read: one file and what rotation made of it, or the files of a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from sf_contract.errors import DataError
from sf_contract.records import RecordFormat
from sf_edge.sources.file_rows import unreadable
from sf_edge.sources.reading_rules import ReadingRules
from sf_edge.sources.rotation import rotated_base

_TEMPORARY_BEGINNINGS: Final = (".", "~", "#")
_TEMPORARY_ENDINGS: Final = ("~", ".tmp", ".temp", ".part", ".partial", ".swp", ".crdownload", ".filepart")


@dataclass(frozen=True, slots=True)
class FileMark:
    """What changes when a file changes, and whether it is to be read.

    `modified_ns` is compared for being equal and never for being later: clocks jump.
    """

    inode: int
    nbytes: int
    modified_ns: int
    is_wanted: bool
    record_format: RecordFormat | None


class Listing(Protocol):
    """Which files there are."""

    @property
    def shown(self) -> str:
        """What people call it."""

    @property
    def only(self) -> str | None:
        """The one name that must be there; None for a folder."""

    @property
    def is_folder(self) -> bool:
        """True when files may come and go."""

    def path(self, name: str) -> Path:
        """Where a file is."""

    def may_hold(self, name: str) -> bool:
        """True when a source of this name can belong here."""

    def marks(self, rules: ReadingRules, *, is_known: Callable[[str], bool]) -> dict[str, FileMark]:
        """The files there are now, those to be read and those that may be rotated ones."""

    def format_of_rotated(self, name: str, rules: ReadingRules) -> RecordFormat | None:
        """The format of a file whose own name does not tell."""


class OneFile:
    """A single file, and files in the same folder that rotation may have made of it."""

    is_folder = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shown = str(path)
        self.only = path.name

    def path(self, name: str) -> Path:
        """Where a file is."""
        return self._path.with_name(name)

    def may_hold(self, name: str) -> bool:
        """True for the file and its rotated names."""
        return rotated_base(name) == rotated_base(self.only)

    def marks(self, rules: ReadingRules, *, is_known: Callable[[str], bool]) -> dict[str, FileMark]:
        """The file, and rotated ones."""
        found = {}
        for name, status in self._files():
            wanted = name == self.only or is_known(name)
            found[name] = _mark(status, is_wanted=wanted, record_format=self.format_of_rotated(name, rules))
        return found

    def format_of_rotated(self, name: str, rules: ReadingRules) -> RecordFormat | None:
        """All of them have the format of the one file."""
        del name
        return rules.format_of(self._path)

    def _files(self) -> list[tuple[str, os.stat_result]]:
        try:
            return list(_plain_files(self._path.parent, names=self._family))
        except DataError as problem:
            if not isinstance(problem.__cause__, PermissionError):
                raise
        return [(self.only, self._path.stat())] if self._path.is_file() else []  # a folder that may not be listed

    def _family(self, name: str) -> bool:
        return name == self.only or rotated_base(name) == self.only


class Folder:
    """The plain files directly in a folder, but for hidden and temporary ones."""

    only = None
    is_folder = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self.shown = str(path)

    def path(self, name: str) -> Path:
        """Where a file is."""
        return self._path / name

    def may_hold(self, name: str) -> bool:
        """Any name can belong to a folder."""
        del name
        return True

    def marks(self, rules: ReadingRules, *, is_known: Callable[[str], bool]) -> dict[str, FileMark]:
        """The files there are."""
        found = {}
        for name, status in _plain_files(self._path, names=lambda name: not is_temporary(name)):
            own = rules.format_of(self._path / name)
            found[name] = _mark(status, is_wanted=own is not None or is_known(name), record_format=own)
        return found

    def format_of_rotated(self, name: str, rules: ReadingRules) -> RecordFormat | None:
        """The format of the name before rotation."""
        return rules.format_of(self._path / rotated_base(name))


def is_temporary(name: str) -> bool:
    """True for hidden files and for names that programs give to files they are still writing."""
    return name.startswith(_TEMPORARY_BEGINNINGS) or name.lower().endswith(_TEMPORARY_ENDINGS)


def _plain_files(folder: Path, *, names: Callable[[str], bool]) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if names(entry.name):
                    yield from _status_of_plain_file(entry)
    except OSError as problem:
        raise unreadable(folder, problem) from problem


def _status_of_plain_file(entry: os.DirEntry[str]) -> Iterator[tuple[str, os.stat_result]]:
    try:
        status = entry.stat()
    except FileNotFoundError:  # gone since it was listed, or a link to nothing
        return
    if stat.S_ISREG(status.st_mode):
        yield entry.name, status


def _mark(status: os.stat_result, *, is_wanted: bool, record_format: RecordFormat | None) -> FileMark:
    return FileMark(
        inode=status.st_ino,
        nbytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        is_wanted=is_wanted,
        record_format=record_format,
    )
