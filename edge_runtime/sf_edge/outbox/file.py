"""The file under an outbox, and the one door to SQLite: tables, transactions, and SQLite's errors as ours."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sf_contract.errors import DiskFull, StoreError
from sf_contract.limits import KIB
from sf_edge.outbox.place import DATABASE_FILE

FORMAT_VERSION: Final = 2

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1), outbox TEXT NOT NULL, bundle_id TEXT NOT NULL, device TEXT NOT NULL,
    codec TEXT NOT NULL, hidden INTEGER NOT NULL, next_ordinal INTEGER NOT NULL,
    unsent_from INTEGER NOT NULL, counters BLOB NOT NULL
) STRICT;
CREATE TABLE sources (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, line INTEGER NOT NULL, nbytes INTEGER NOT NULL, digest TEXT NOT NULL
) STRICT;
CREATE TABLE samples (
    ordinal INTEGER PRIMARY KEY, source INTEGER NOT NULL, line INTEGER NOT NULL, role TEXT NOT NULL, label INTEGER,
    tokens INTEGER NOT NULL, nbytes INTEGER NOT NULL, row_data BLOB NOT NULL, scale_data BLOB NOT NULL, target_data BLOB
) STRICT;
CREATE TABLE set_aside (
    id INTEGER PRIMARY KEY, ordinal INTEGER, source INTEGER NOT NULL, line INTEGER NOT NULL, code TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
PRAGMA user_version = {FORMAT_VERSION};
"""

_PROBE_BYTES: Final = 64 * KIB
_NO_ROOM_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OutboxFile:
    """An open outbox file.

    A transaction begins with the first change and is durable when `commit` returns: write-ahead log, synced each time.

    Args:
        folder: where it is.
        read_only: only look; a process that writes is not disturbed.

    Raises:
        StoreError: here and everywhere, the file cannot be used.
        DiskFull: here and everywhere, there is no room.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._folder = folder
        with _translated(folder):
            self._connection = connect(folder / DATABASE_FILE, read_only=read_only)
        try:
            self._check_version(may_be_new=not read_only)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up the open transaction."""
        self._connection.close()

    @property
    def is_new(self) -> bool:
        """True until tables were made."""
        return self._version() == 0

    @property
    def is_changed(self) -> bool:
        """True when there is something to commit."""
        return self._connection.in_transaction

    def make_tables(self) -> None:
        """Begin a transaction that makes the tables."""
        with _translated(self._folder):
            self._connection.executescript(_SCHEMA)

    def begin(self) -> None:
        """Begin a transaction unless there is one."""
        if not self._connection.in_transaction:
            with _translated(self._folder):
                self._connection.execute("BEGIN IMMEDIATE")

    def write(self, statement: str, values: tuple[object, ...] = ()) -> int:
        """Change something; the id of the row that was inserted last."""
        self.begin()
        with _translated(self._folder):
            return self._connection.execute(statement, values).lastrowid or 0

    def read(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows that a statement gives."""
        with _translated(self._folder):
            return self._connection.execute(statement, values).fetchall()

    def commit(self) -> None:
        """Make the transaction durable."""
        with _translated(self._folder):
            self._connection.execute("COMMIT")

    def _version(self) -> int:
        return int(self.read("PRAGMA user_version")[0][0])

    def _check_version(self, *, may_be_new: bool) -> None:
        version = self._version()
        if version == FORMAT_VERSION or (version == 0 and may_be_new):
            return
        raise StoreError(
            f"{self._folder} has outbox format {version}; this program reads {FORMAT_VERSION}",
            cure="give --outbox a new folder, or deliver its samples with the SplitFrozen version that made it",
        )


def connect(database: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open a database with the settings that make a commit survive a power cut (`docs/architecture.md`)."""
    mode = "ro" if read_only else "rwc"
    uri = f"{database.resolve().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
    try:
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = FAST")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as problem:
        if _is_for_want_of_room(problem, folder):
            raise DiskFull(
                f"no room left for the outbox in {folder}; everything committed so far is safe",
                cure="free some space (or raise the quota or file size limit) and start again; it resumes where it stopped",
            ) from problem
        raise StoreError(
            f"the outbox in {folder} cannot be used: {problem}", cure="check the disk, or give --outbox a new folder"
        ) from problem


def _is_for_want_of_room(problem: sqlite3.Error, folder: Path) -> bool:
    """SQLite says FULL only where writing failed with ENOSPC; a quota, a file size limit and a sync that found no room are
    plain input/output errors to it, as a dying card is. So the disk is asked."""
    code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_OK)
    if code == sqlite3.SQLITE_FULL:
        return True
    if code & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    return _has_file_size_limit(code) or not _can_write(folder)


def _has_file_size_limit(code: int) -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return code == sqlite3.SQLITE_IOERR_WRITE and limit != resource.RLIM_INFINITY


def _can_write(folder: Path) -> bool:
    """False when the folder has no room for a little file."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as problem:
        return problem.errno not in _NO_ROOM_ERRORS
    return True
