"""What disk, SQLite and store take in by themselves, one group after the other: the ceiling that ingest is held against."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.ingest.samples import Supply
from sf_contract.limits import KIB
from sf_server.store.file import PAGE_BYTES
from sf_server.store.store import Store

SMALL_WRITE_BYTES: Final = 4 * KIB
STORE_BYTES: Final = 1 << 40
_FEWEST_GROUPS: Final = 3


class Rate(msgspec.Struct, frozen=True):
    """Groups that were made durable one after the other."""

    groups: int
    nbytes: int
    seconds: float

    @property
    def per_s(self) -> float:
        """Groups per second."""
        return self.groups / self.seconds

    @property
    def mb_per_s(self) -> float:
        """Million bytes per second."""
        return self.nbytes / self.seconds / 1e6


class GroupRates(msgspec.Struct, frozen=True):
    """Groups of `group_bytes`, each durable before the next begins.

    Attributes:
        file: appended to a file, then `fsync`.
        sqlite: inserted as blobs of one sample each, then COMMIT; WAL, `synchronous=FULL`, the store's page size.
        store: through the server's own store, without a network before it.
    """

    group_bytes: int
    file: Rate
    sqlite: Rate
    store: Rate


def small_syncs(folder: Path, *, seconds: float) -> Rate:
    """How often 4 KiB at the same place of a file can be written and made durable."""
    with _scratch(folder).open("w+b", buffering=0) as stream:

        def sync() -> int:
            os.pwrite(stream.fileno(), os.urandom(SMALL_WRITE_BYTES), 0)
            os.fsync(stream.fileno())
            return SMALL_WRITE_BYTES

        rate = _repeat(sync, seconds)
    _scratch(folder).unlink()
    return rate


def file_rate(folder: Path, group_bytes: int, *, seconds: float) -> Rate:
    """Groups appended to a file, each followed by an `fsync`."""
    group = os.urandom(group_bytes)
    with _scratch(folder).open("wb", buffering=0) as stream:

        def append() -> int:
            stream.write(group)
            os.fsync(stream.fileno())
            return group_bytes

        rate = _repeat(append, seconds)
    _scratch(folder).unlink()
    return rate


def group_rates(folder: Path, group_bytes: int, supply: Supply, *, seconds: float) -> GroupRates:
    """All three ways, `seconds` each; what they write is removed."""
    return GroupRates(
        group_bytes=group_bytes,
        file=file_rate(folder, group_bytes, seconds=seconds),
        sqlite=_sqlite_rate(folder, group_bytes, sample_bytes=supply.shape.nbytes, seconds=seconds),
        store=_store_rate(folder, group_bytes, supply, seconds=seconds),
    )


def _sqlite_rate(folder: Path, group_bytes: int, *, sample_bytes: int, seconds: float) -> Rate:
    path = _scratch(folder)
    samples = max(1, round(group_bytes / sample_bytes))
    blob = (os.urandom(sample_bytes),)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE samples(seq INTEGER PRIMARY KEY, rows BLOB NOT NULL) STRICT")

        def commit() -> int:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO samples(rows) VALUES (?)", [blob] * samples)
            connection.execute("COMMIT")
            return samples * sample_bytes

        return _repeat(commit, seconds)
    finally:
        connection.close()
        path.unlink()


def _store_rate(folder: Path, group_bytes: int, supply: Supply, *, seconds: float) -> Rate:
    path = _scratch(folder)
    samples = max(1, round(group_bytes / supply.shape.nbytes))
    first = 0
    with Store.open(path, max_bytes=STORE_BYTES) as store:

        def commit() -> int:
            nonlocal first
            with store.commit():
                store.add(
                    device="disk",
                    outbox="0" * 32,
                    bundle_id="0" * 64,
                    samples=supply.samples(range(first, first + samples)),
                )
            first += samples
            return samples * supply.shape.nbytes

        rate = _repeat(commit, seconds)
    path.unlink()
    return rate


def _repeat(once: Callable[[], int], seconds: float) -> Rate:
    groups = nbytes = 0
    began_s = time.monotonic()
    while groups < _FEWEST_GROUPS or time.monotonic() - began_s < seconds:
        nbytes += once()
        groups += 1
    return Rate(groups=groups, nbytes=nbytes, seconds=time.monotonic() - began_s)


def _scratch(folder: Path) -> Path:
    return folder / "disk.scratch"
