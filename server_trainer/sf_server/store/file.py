"""The store's file: opened, prepared, checked, compacted. The one door to SQLite on the server."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sf_contract.errors import DiskFull, StoreError
from sf_contract.limits import KIB, MIB
from sf_server.store.schema import ADDITIONS, APPLICATION_ID, SCHEMA, SCHEMA_VERSION

Connection = sqlite3.Connection

BUSY_TIMEOUT_S: Final = 30.0
WAL_BYTES_KEPT: Final = 64 * MIB
PAGE_BYTES: Final = 16 * KIB
"""Samples are tens of kilobytes: against SQLite's usual 4 KiB, writing is 1.4 and loading 3 times as fast."""
CACHE_BYTES: Final = 32 * MIB
"""Of the writer: what is made durable together stays in memory until then. What does not fit in SQLite's usual 2 MB is
written early, read again and written on at the commit: a third more write calls and twice the reading."""


def open_for_writing(path: Path, *, max_bytes: int) -> Connection:
    """A connection that writes; a new store is made where there is no file.

    Raises:
        StoreError: the file is not a store of this format version, or is damaged.
        DiskFull: there is no room to make it.
    """
    with translated(path):
        connection = _connect(f"file:{_quoted(path)}?mode=rwc")
    try:
        with translated(path):
            _prepare(connection, max_bytes)
            _check_kind(connection, path)
            connection.executescript(f"BEGIN IMMEDIATE; {ADDITIONS} COMMIT;")
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> Connection:
    """A connection that cannot write, while another process may be writing.

    Raises:
        StoreError: there is no file, or it is not a store of this format version.
    """
    if not path.is_file():
        raise StoreError(f"there is no store at {path}", cure="start sf-server train with this run folder first")
    with translated(path):
        connection = _connect(f"file:{_quoted(path)}?mode=rw")
    try:
        with translated(path):
            connection.execute("PRAGMA query_only = ON")
            _check_kind(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as problem:
        if getattr(problem, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DiskFull(
                f"no room left in {path}: the disk or --max-store-bytes is full",
                cure="free some space, or resume with a larger --max-store-bytes",
            ) from problem
        raise StoreError(
            f"{path} cannot be used: {problem}", cure="check the disk and the file's permissions, or start a new run"
        ) from problem


def log_path(path: Path) -> Path:
    """SQLite's write-ahead log beside the file."""
    return path.with_name(path.name + "-wal")


def _prepare(connection: Connection, max_bytes: int) -> None:
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_BYTES // KIB}")
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    connection.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_bytes)}")
    if _is_new(connection):
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")


def _is_new(connection: Connection) -> bool:
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
    return bool(tables == 0)


def _check_kind(connection: Connection, path: Path) -> None:
    (kind,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if kind != APPLICATION_ID:
        raise StoreError(f"{path} is not a store", cure="give a run folder that sf-server train made")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has format version {version}, this program reads {SCHEMA_VERSION}",
            cure="use the SplitFrozen version that made it",
        )


def _connect(uri: str) -> Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
