"""The store: every received sample, durable before the device hears of it. The one door to SQLite on the server.

Ingest writes, the trainer reads (`open_read_only`) in its own process. `seq` numbers samples in the order they were stored and
is never used twice. Samples are recognised by (outbox, ordinal), so a repeat is never stored again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import numpy as np

from sf_contract.activations import TARGET_DTYPE, EncodedSample
from sf_contract.codec import row_dtype, scale_dtype
from sf_contract.errors import DiskFull, StoreError
from sf_contract.int4 import Int4Parameters
from sf_contract.limits import KIB, MIB
from sf_contract.messages import AlreadyStored, Role, Stored
from sf_server.store.schema import APPLICATION_ID, INSERT_SAMPLE, NOTE_HELLO, NOTE_TRAFFIC, SCHEMA, SCHEMA_VERSION
from sf_server.store.stored import DeviceSummary, SampleInfo, StoreCounts, StoredSample, device_summary, stored_sample

BUSY_TIMEOUT_S: Final = 30.0
WAL_BYTES_KEPT: Final = 64 * MIB
PAGE_BYTES: Final = 16 * KIB
"""Samples are tens of kilobytes: against SQLite's usual 4 KiB, writing is 1.4 and loading 3 times as fast."""
CACHE_BYTES: Final = 32 * MIB
"""Of the writer: what is made durable together stays in memory until then. What does not fit in SQLite's usual 2 MB is
written early, read again and written on at the commit: a third more write calls and twice the reading."""
_SEQS_PER_QUERY: Final = 500


class Store:
    """An open store; use it in the thread that opened it, and close it (or use it as a context manager)."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, int4: Int4Parameters | None = None) -> None:
        self._path = path
        self._connection = connection
        self._int4 = int4

    @classmethod
    def open(cls, path: Path, *, max_bytes: int) -> Self:
        """Open for reading and writing; a new file is made where there is none.

        Raises:
            StoreError: the file is not a store of this format version, or is damaged.
            DiskFull: there is no room to make it.
        """
        with _translated(path):
            store = cls(path, _connect(f"file:{_quoted(path)}?mode=rwc"))
        try:
            with _translated(path):
                store._prepare(max_bytes)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open_read_only(cls, path: Path, *, int4: Int4Parameters | None = None) -> Self:
        """Open for reading, while another process may be writing; `int4` lets the samples of such a bundle be decoded.

        Raises:
            StoreError: there is no file, or it is not a store of this format version.
        """
        if not path.is_file():
            raise StoreError(f"there is no store at {path}", cure="start sf-server train with this run folder first")
        with _translated(path):
            store = cls(path, _connect(f"file:{_quoted(path)}?mode=rw"), int4=int4)
        try:
            with _translated(path):
                store._connection.execute("PRAGMA query_only = ON")
                store._check_kind()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    @contextmanager
    def commit(self) -> Iterator[None]:
        """One durable transaction around several calls; all of them or none when something is raised.

        Raises:
            DiskFull: the disk or the quota is full; nothing of the transaction is kept.
            StoreError: the file cannot be written.
        """
        with _translated(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def add(
        self, *, device: str, outbox: str, bundle_id: str, samples: Sequence[EncodedSample]
    ) -> list[Stored | AlreadyStored]:
        """Store samples of one device, in order; durable when the surrounding `commit` ends.

        Raises:
            DiskFull, StoreError: as `commit` does.
        """
        with self._within_transaction():
            verdicts = [self._add_one(device, outbox, bundle_id, sample) for sample in samples]
            stored = sum(isinstance(verdict, Stored) for verdict in verdicts)
            self._connection.execute(
                "UPDATE devices SET samples = samples + ?, repeats = repeats + ?, "
                "finished = CASE WHEN ? THEN 0 ELSE finished END WHERE outbox = ?",
                (stored, len(verdicts) - stored, stored, outbox),
            )
        return verdicts

    def note_hello(
        self, *, device: str, outbox: str, bundle_id: str, self_test_error: float, waiting_samples: int, now_s: float
    ) -> None:
        """Record that a device connected; one that holds samples has not finished."""
        values = {
            "device": device,
            "outbox": outbox,
            "bundle_id": bundle_id,
            "self_test_error": self_test_error,
            "waiting_samples": waiting_samples,
            "now_s": now_s,
        }
        with self._within_transaction():
            self._connection.execute(NOTE_HELLO, values)

    def note_finished(self, *, outbox: str, skipped_rows: int, now_s: float) -> None:
        """Record that a device's source is exhausted and everything acknowledged."""
        with self._within_transaction():
            self._connection.execute(
                "UPDATE devices SET finished = 1, skipped_rows = ?, last_seen_s = ? WHERE outbox = ?",
                (skipped_rows, now_s, outbox),
            )

    def note_rejected(self, *, outbox: str, samples: int) -> None:
        """Count samples that were rejected for good."""
        with self._within_transaction():
            self._connection.execute("UPDATE devices SET rejected = rejected + ? WHERE outbox = ?", (samples, outbox))

    def note_traffic(
        self,
        *,
        outbox: str,
        bytes_in: int,
        bytes_out: int,
        malformed: int,
        now_s: float,
        activity: str | None = None,
    ) -> None:
        """Add to the counters of a device; `activity` is what holds it back, None when it said nothing about that."""
        values = {
            "outbox": outbox,
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "malformed": malformed,
            "now_s": now_s,
            "activity": activity,
        }
        with self._within_transaction():
            self._connection.execute(NOTE_TRAFFIC, values)

    def sample_infos(self, *, role: Role, after_seq: int = 0, limit: int | None = None) -> list[SampleInfo]:
        """Samples of a role with a higher `seq` than `after_seq`, in `seq` order."""
        with _translated(self._path):
            found = self._connection.execute(
                "SELECT seq, device, tokens, label FROM samples INDEXED BY samples_by_role "
                "WHERE role = ? AND seq > ? ORDER BY seq LIMIT ?",
                (role.value, after_seq, -1 if limit is None else limit),
            )
            return [SampleInfo(*row) for row in found]

    def load(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Samples in the order asked for.

        Raises:
            StoreError: one of them is not in the store.
        """
        found: dict[int, StoredSample] = {}
        for start in range(0, len(seqs), _SEQS_PER_QUERY):
            part = seqs[start : start + _SEQS_PER_QUERY]
            marks = ",".join("?" * len(part))
            with _translated(self._path):
                for row in self._connection.execute(
                    f"SELECT seq, device, label, tokens, codec, rows, scales, targets FROM samples WHERE seq IN ({marks})",
                    list(part),
                ):
                    found[row[0]] = stored_sample(row, self._int4)
        missing = next((seq for seq in seqs if seq not in found), None)
        if missing is not None:
            raise StoreError(f"{self._path} holds no sample {missing}", cure="start a new run from the devices' data")
        return [found[seq] for seq in seqs]

    def owner(self, outbox: str) -> str | None:
        """Name of the device an outbox belongs to; None for an outbox never seen."""
        with _translated(self._path):
            row = self._connection.execute("SELECT device FROM devices WHERE outbox = ?", (outbox,)).fetchone()
        return None if row is None else str(row[0])

    def device_summaries(self) -> list[DeviceSummary]:
        """All outboxes ever seen, by device name, the one used last at the end of each device."""
        columns = ", ".join(DeviceSummary.__dataclass_fields__)
        with _translated(self._path):
            rows = self._connection.execute(f"SELECT {columns} FROM devices ORDER BY device, last_seen_s, outbox")
            return [device_summary(row) for row in rows]

    def counts(self) -> StoreCounts:
        """Samples, tokens and devices; cheap enough to ask every second."""
        with _translated(self._path):
            rows = self._connection.execute("SELECT role, COUNT(*), SUM(tokens) FROM samples GROUP BY role").fetchall()
        by_role = {role: (samples, tokens) for role, samples, tokens in rows}
        finished = {summary.device: summary.finished for summary in self.device_summaries()}
        train = by_role.get(Role.TRAIN.value, (0, 0))
        validation = by_role.get(Role.VALIDATION.value, (0, 0))
        return StoreCounts(
            train_samples=train[0],
            train_tokens=train[1],
            validation_samples=validation[0],
            validation_tokens=validation[1],
            devices=len(finished),
            finished_devices=sum(finished.values()),
        )

    def _add_one(self, device: str, outbox: str, bundle_id: str, sample: EncodedSample) -> Stored | AlreadyStored:
        rows = sample.rows
        cursor = self._connection.execute(
            INSERT_SAMPLE,
            (
                device,
                outbox,
                sample.ordinal,
                bundle_id,
                sample.role.value,
                sample.label,
                rows.tokens,
                rows.codec.value,
                np.ascontiguousarray(rows.rows, dtype=row_dtype(rows.codec)).tobytes(),
                np.ascontiguousarray(rows.scales, dtype=scale_dtype(rows.codec)).tobytes(),
                None if sample.targets is None else np.ascontiguousarray(sample.targets, dtype=TARGET_DTYPE).tobytes(),
            ),
        )
        return Stored(ordinal=sample.ordinal) if cursor.rowcount == 1 else AlreadyStored(ordinal=sample.ordinal)

    @contextmanager
    def _within_transaction(self) -> Iterator[None]:
        if self._connection.in_transaction:
            yield
        else:
            with self.commit():
                yield

    def _prepare(self, max_bytes: int) -> None:
        connection = self._connection
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_BYTES // KIB}")
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_bytes)}")
        if self._is_new():
            connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT;")
        self._check_kind()

    def _is_new(self) -> bool:
        (tables,) = self._connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()
        return bool(tables == 0)

    def _check_kind(self) -> None:
        (kind,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if kind != APPLICATION_ID:
            raise StoreError(f"{self._path} is not a store", cure="give a run folder that sf-server train made")
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self._path} has format version {version}, this program reads {SCHEMA_VERSION}",
                cure="use the SplitFrozen version that made it",
            )


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
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
