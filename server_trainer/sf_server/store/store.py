"""The store: every received sample, durable before the device hears of it.

Ingest writes, the trainer reads (`open_read_only`) in its own process. `seq` numbers samples in the order they were stored and
is never used twice. Samples are recognised by (outbox, ordinal), so a repeat is never stored again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import numpy as np

from sf_contract.activations import TARGET_DTYPE, EncodedSample
from sf_contract.codec import row_dtype, scale_dtype
from sf_contract.errors import StoreError
from sf_contract.int4 import Int4Parameters
from sf_contract.messages import AlreadyStored, Role, Stored
from sf_server.store.file import Connection, open_for_reading, open_for_writing, translated
from sf_server.store.overview import StoreOverview
from sf_server.store.schema import INSERT_SAMPLE, NOTE_ARRIVAL, NOTE_HELLO, NOTE_TRAFFIC
from sf_server.store.stored import Origin, SampleInfo, StoredSample, stored_sample

HOUR_S: Final = 3600
_SEQS_PER_QUERY: Final = 500


class Store(StoreOverview):
    """An open store; use it in the thread that opened it, and close it (or use it as a context manager)."""

    def __init__(self, path: Path, connection: Connection, *, int4: Mapping[str, Int4Parameters] | None = None) -> None:
        super().__init__(path, connection)
        self._int4 = int4 or {}

    @classmethod
    def open(cls, path: Path, *, max_bytes: int) -> Self:
        """Open for reading and writing; a new file is made where there is none.

        Raises:
            StoreError: the file is not a store of this format version, or is damaged.
            DiskFull: there is no room to make it.
        """
        return cls(path, open_for_writing(path, max_bytes=max_bytes))

    @classmethod
    def open_read_only(cls, path: Path, *, int4: Mapping[str, Int4Parameters] | None = None) -> Self:
        """Open for reading, while another process may be writing; `int4`, by bundle id, lets such samples be decoded.

        Raises:
            StoreError: there is no file, or it is not a store of this format version.
        """
        return cls(path, open_for_reading(path), int4=int4)

    @contextmanager
    def commit(self) -> Iterator[None]:
        """One durable transaction around several calls; all of them or none when something is raised.

        Raises:
            DiskFull: the disk or the quota is full; nothing of the transaction is kept.
            StoreError: the file cannot be written.
        """
        with translated(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def add(
        self,
        *,
        device: str,
        outbox: str,
        bundle_id: str,
        samples: Sequence[EncodedSample],
        now_s: float | None = None,
    ) -> list[Stored | AlreadyStored]:
        """Store samples of one device, in order; durable when the surrounding `commit` ends.

        Args:
            now_s: when they came (seconds since 1970), for retention; None leaves it open: they count as old as the next ones.

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
            if stored and now_s is not None:
                self._connection.execute(NOTE_ARRIVAL, {"hour": int(now_s // HOUR_S)})
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
        with translated(self._path):
            found = self._connection.execute(
                "SELECT seq, device, tokens, label FROM samples INDEXED BY samples_by_role "
                "WHERE role = ? AND seq > ? ORDER BY seq LIMIT ?",
                (role.value, after_seq, -1 if limit is None else limit),
            )
            # SQLite makes a new string for every row; there are as many samples as rows, but few devices.
            return [SampleInfo(seq, sys.intern(device), tokens, label) for seq, device, tokens, label in found]

    def load(self, seqs: Sequence[int]) -> list[StoredSample]:
        """Samples in the order asked for.

        Raises:
            StoreError: one of them is not in the store.
        """
        found: dict[int, StoredSample] = {}
        for start in range(0, len(seqs), _SEQS_PER_QUERY):
            part = seqs[start : start + _SEQS_PER_QUERY]
            marks = ",".join("?" * len(part))
            with translated(self._path):
                for row in self._connection.execute(
                    "SELECT bundle_id, seq, device, label, tokens, codec, rows, scales, targets FROM samples "
                    f"WHERE seq IN ({marks})",
                    list(part),
                ):
                    found[row[1]] = stored_sample(row[1:], self._int4.get(row[0]))
        missing = next((seq for seq in seqs if seq not in found), None)
        if missing is not None:
            raise StoreError(f"{self._path} holds no sample {missing}", cure="start a new run from the devices' data")
        return [found[seq] for seq in seqs]

    def origins(self, seqs: Sequence[int]) -> dict[int, Origin]:
        """Where samples come from, by `seq`, of those that are in the store."""
        found: dict[int, Origin] = {}
        for start in range(0, len(seqs), _SEQS_PER_QUERY):
            part = seqs[start : start + _SEQS_PER_QUERY]
            marks = ",".join("?" * len(part))
            with translated(self._path):
                rows = self._connection.execute(
                    f"SELECT seq, bundle_id, outbox, ordinal FROM samples WHERE seq IN ({marks})", list(part)
                )
                found |= {row[0]: Origin(*row[1:]) for row in rows}
        return found

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
