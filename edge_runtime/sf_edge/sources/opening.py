"""From `--data` to a source, and the refusal of what cannot be one before any long work begins."""

from __future__ import annotations

import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_contract.errors import DataError, UsageError
from sf_contract.records import RecordFormat, format_of
from sf_edge.sources.file_rows import rows_after, unreadable
from sf_edge.sources.files import FilesSource, Surroundings
from sf_edge.sources.listing import Folder, Listing, OneFile
from sf_edge.sources.position import Source, SourcePosition
from sf_edge.sources.reading_rules import ReadingRules
from sf_edge.sources.stream import SHOWN, STREAM_NAME, StreamSource

STANDARD_INPUT: Final = "-"
_DESCRIPTOR: Final = 0


@dataclass(frozen=True, slots=True)
class DataChoice:
    """What was asked for.

    Attributes:
        data: a file, a folder, or `-` for standard input.
        record_format: None goes by the ending of the name.
        watch: never end.
    """

    data: str
    record_format: RecordFormat | None
    watch: bool

    @property
    def is_stream(self) -> bool:
        """True for standard input."""
        return self.data == STANDARD_INPUT

    @property
    def path(self) -> Path:
        """The file or folder."""
        return Path(self.data).expanduser()

    @property
    def shown(self) -> str:
        """What people call it."""
        return SHOWN if self.is_stream else str(self.path)


def check_data(choice: DataChoice) -> None:
    """Fail before the long work when there is nothing to read, and do not hang on a pipe.

    Raises:
        DataError: nothing there, nothing readable, no rows.
        UsageError: watching a pipe.
    """
    if choice.is_stream:
        _check_stream(choice)
        return
    try:
        mode = choice.path.stat().st_mode
    except OSError as problem:
        raise unreadable(choice.path, problem) from problem
    if stat.S_ISDIR(mode):
        _check_folder(choice)
    elif stat.S_ISREG(mode):
        _check_file(choice)
    else:
        raise DataError(
            f"{choice.path} is not a plain file",
            cure=f"give a file or a folder; a pipe is read as standard input: --data - < {choice.path}",
        )


def open_source(
    choice: DataChoice, *, rules: ReadingRules, positions: Mapping[str, SourcePosition], around: Surroundings
) -> Source:
    """The source, going on behind what was taken before.

    Args:
        positions: how far each source was taken, by name.

    Raises:
        DataError: the bundle cannot use a file of this format.
    """
    if choice.is_stream:
        position = positions.get(STREAM_NAME, SourcePosition(source=STREAM_NAME))
        return StreamSource(_DESCRIPTOR, position=position, rules=rules)
    listing: Listing = Folder(choice.path) if choice.path.is_dir() else OneFile(choice.path)
    record_format = None if listing.is_folder else rules.format_of(choice.path)
    if record_format is not None:
        rules.check(record_format, where=choice.shown)
    return FilesSource(listing, positions=positions, rules=rules, watch=choice.watch, around=around)


def _check_stream(choice: DataChoice) -> None:
    if choice.watch:
        raise UsageError(
            "--watch is for files and folders: standard input ends when its writer ends", cure="leave --watch out"
        )
    if sys.stdin is None:
        raise DataError(f"{SHOWN} is closed", cure="connect it to a pipe or a file, or give --data a file")


def _check_folder(choice: DataChoice) -> None:
    rules = ReadingRules(record_format=choice.record_format)
    marks = Folder(choice.path).marks(rules, is_known=lambda _: False)
    if not choice.watch and not any(mark.is_wanted for mark in marks.values()):
        raise DataError(
            f"{choice.path} holds no data files",
            cure="put .jsonl, .csv or .txt files there, name their --format, or give --watch to wait for them",
        )


def _check_file(choice: DataChoice) -> None:
    record_format = choice.record_format or format_of(choice.path)
    if record_format is None:
        raise DataError(
            f"{choice.path} has the unknown ending {choice.path.suffix.lower()!r}; "
            "known are .jsonl, .ndjson, .json, .csv and .txt",
            cure="rename the file after its format, or name it with --format",
        )
    rows = rows_after(
        choice.path, SourcePosition(), rules=ReadingRules(), record_format=record_format, is_growing=choice.watch
    )
    if next(rows, None) is None and not choice.watch:
        raise DataError(
            f"{choice.path} holds no rows", cure="give a file with one JSON object, CSV row or text per line"
        )
