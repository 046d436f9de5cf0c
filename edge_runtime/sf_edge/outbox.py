"""The device's durable queue, and the one door to SQLite.

A sample, its ordinal and the position in the data file change in one transaction, synced to the disk before it counts;
so whenever the process dies, no row is skipped and none is taken twice. Only committed samples are ever offered.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from sf_contract.activations import TARGET_DTYPE, EncodedSample
from sf_contract.codec import EncodedRows, WireCodec, row_columns, row_dtype, scale_dtype
from sf_contract.errors import DiskFull, MismatchError, StoreError
from sf_contract.messages import AlreadyStored, Rejected, Role, Stored, Verdict
from sf_edge.counters import Counters
from sf_edge.folder_lock import FolderLock
from sf_edge.outbox_records import Offer, OutboxStatus, Owner, SetAside
from sf_edge.sources import SourcePosition

DATABASE_FILE: Final = "outbox.sqlite3"
FORMAT_VERSION: Final = 1

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1), outbox TEXT NOT NULL, bundle_id TEXT NOT NULL, device TEXT NOT NULL,
    codec TEXT NOT NULL, hidden INTEGER NOT NULL, next_ordinal INTEGER NOT NULL,
    unsent_from INTEGER NOT NULL, line INTEGER NOT NULL, digest TEXT NOT NULL, counters BLOB NOT NULL
) STRICT;
CREATE TABLE samples (
    ordinal INTEGER PRIMARY KEY, line INTEGER NOT NULL, role TEXT NOT NULL, label INTEGER, tokens INTEGER NOT NULL,
    nbytes INTEGER NOT NULL, row_data BLOB NOT NULL, scale_data BLOB NOT NULL, target_data BLOB
) STRICT;
CREATE TABLE set_aside (
    id INTEGER PRIMARY KEY, ordinal INTEGER, line INTEGER NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
PRAGMA user_version = {FORMAT_VERSION};
"""


class Outbox:
    """An open outbox; use as a context manager. Leaving it without `commit` gives up the open transaction.

    Args:
        folder: made when missing, readable by its owner only.
        owner: must be the one the outbox was made with.
        max_bytes: payload bytes `has_room` lets it grow to.

    Raises:
        AlreadyRunning: another process has it open.
        MismatchError: it belongs to another bundle or device.
        StoreError: the files cannot be used.
        DiskFull: here and in every method that writes.
    """

    def __init__(self, folder: Path, *, owner: Owner, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._owner = owner
        self._folder = folder
        self._unsent_from = 0
        with contextlib.ExitStack() as undo:
            undo.enter_context(FolderLock(folder))
            with _translated(folder):
                self._connection = undo.enter_context(contextlib.closing(_connect(folder / DATABASE_FILE)))
                self._load()
            self._opened = undo.pop_all()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the open transaction and let others open the outbox."""
        self._opened.close()

    @property
    def is_changed(self) -> bool:
        """True when there is something to commit."""
        return self._connection.in_transaction

    def has_room(self, nbytes: int) -> bool:
        """True when a sample of this size may be added; an empty outbox takes one of any size."""
        return self.waiting_samples == 0 or self.waiting_bytes + nbytes <= self._max_bytes

    def append(self, sample: EncodedSample, position: SourcePosition) -> None:
        """Add a sample that has `next_ordinal`, made from the row that ends at `position`."""
        targets = None if sample.targets is None else sample.targets.astype(TARGET_DTYPE).tobytes()
        rows = sample.rows.rows.tobytes()
        scales = sample.rows.scales.astype(scale_dtype(sample.rows.codec)).tobytes()
        values = (
            sample.ordinal, position.line, sample.role.value, sample.label, sample.rows.tokens,
            sample.nbytes, rows, scales, targets,
        )  # fmt: skip
        self._write("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        self.next_ordinal = sample.ordinal + 1
        self.position = position
        self.waiting_samples += 1
        self.waiting_bytes += sample.nbytes

    def skip(self, position: SourcePosition) -> None:
        """Note that the row that ends at `position` gave no sample."""
        self._begin()
        self.position = position

    def set_row_aside(self, position: SourcePosition, *, code: str, detail: str) -> None:
        """Like `skip`, and `status` will show the reason."""
        self.skip(position)
        self._write("INSERT INTO set_aside VALUES (NULL, NULL, ?, ?, ?)", (position.line, code, detail))

    def offers(self, *, after: int, limit: int) -> list[Offer]:
        """Committed samples with an ordinal above `after`, oldest first."""
        found = self._read(
            "SELECT ordinal, nbytes FROM samples WHERE ordinal > ? AND ordinal < ? ORDER BY ordinal LIMIT ?",
            (after, self._committed_ordinals, limit),
        )
        return [Offer(ordinal=ordinal, nbytes=nbytes) for ordinal, nbytes in found]

    def load(self, ordinals: Sequence[int]) -> list[EncodedSample]:
        """The samples with these ordinals, those that are still there, in ascending order."""
        found = self._read(
            "SELECT ordinal, role, label, tokens, row_data, scale_data, target_data FROM samples"
            f" WHERE ordinal IN ({', '.join('?' * len(ordinals))}) ORDER BY ordinal",
            tuple(ordinals),
        )
        return [self._sample(values) for values in found]

    def mark_sent(self, ordinals: Sequence[int]) -> int:
        """Note that samples are about to be sent, oldest first as always; how many of them for the first time."""
        self._begin()
        first_times = sum(ordinal >= self._unsent_from for ordinal in ordinals)
        self._unsent_from = max(self._unsent_from, *(ordinal + 1 for ordinal in ordinals))
        return first_times

    def settle(self, verdicts: Sequence[Verdict]) -> int:
        """Forget what the server stored and set aside what it rejected; how many samples that settled.

        Verdicts on ordinals the outbox does not hold (any more) are ignored. Counts them in `counters`.
        """
        return sum(self._settle_one(verdict) for verdict in verdicts)

    def commit(self) -> None:
        """Make everything since the last commit durable, with the counters."""
        self._begin()
        counters, position = msgspec.json.encode(self.counters), self.position
        state = (self.next_ordinal, self._unsent_from, position.line, position.digest, counters)
        self._write("UPDATE state SET next_ordinal = ?, unsent_from = ?, line = ?, digest = ?, counters = ?", state)
        with _translated(self._folder):
            self._connection.execute("COMMIT")
        self._committed_ordinals = self.next_ordinal

    def status(self) -> OutboxStatus:
        """What the outbox holds."""
        return _read_status(self._connection)

    def _load(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._create()
        elif version != FORMAT_VERSION:
            raise StoreError(
                f"{self._folder} has outbox format {version}; this program reads {FORMAT_VERSION}",
                cure="give --outbox a new folder, or use the SplitFrozen version that made it",
            )
        status = self.status()
        _check_owner(self._folder, found=status.owner, expected=self._owner)
        self.outbox_id = status.outbox_id
        self.position = status.position
        self.counters = status.counters
        self.waiting_samples = status.waiting_samples
        self.waiting_bytes = status.waiting_bytes
        row = self._connection.execute("SELECT next_ordinal, unsent_from FROM state").fetchone()
        self.next_ordinal, self._unsent_from = int(row[0]), int(row[1])
        self._committed_ordinals = self.next_ordinal

    def _create(self) -> None:
        owner = self._owner
        self._connection.executescript(_SCHEMA)
        self._connection.execute(
            "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, 0, 0, 0, '', ?)",
            (
                secrets.token_hex(16),
                owner.bundle_id,
                owner.device,
                owner.codec.value,
                owner.hidden,
                msgspec.json.encode(Counters()),
            ),
        )
        self._connection.execute("COMMIT")

    def _settle_one(self, verdict: Verdict) -> int:
        found = self._read("SELECT nbytes, line FROM samples WHERE ordinal = ?", (verdict.ordinal,))
        if not found:
            return 0
        nbytes, line = found[0]
        match verdict:
            case Stored() | AlreadyStored():
                self.counters.acknowledged += 1
            case Rejected(ordinal=ordinal, code=code, detail=detail):
                self._write("INSERT INTO set_aside VALUES (NULL, ?, ?, ?, ?)", (ordinal, line, code.value, detail))
                self.counters.rejected += 1
        self._write("DELETE FROM samples WHERE ordinal = ?", (verdict.ordinal,))
        self.waiting_samples -= 1
        self.waiting_bytes -= nbytes
        return 1

    def _sample(self, values: tuple[Any, ...]) -> EncodedSample:
        ordinal, role, label, tokens, row_data, scale_data, target_data = values
        codec, columns = self._owner.codec, row_columns(self._owner.codec, self._owner.hidden)
        rows = np.frombuffer(row_data, dtype=row_dtype(codec)).reshape(tokens, columns)
        scales = np.frombuffer(scale_data, dtype=scale_dtype(codec)).reshape(tokens, -1 if scale_data else 0)
        targets = None if target_data is None else np.frombuffer(target_data, dtype=TARGET_DTYPE)
        encoded = EncodedRows(codec=codec, rows=rows, scales=scales)
        return EncodedSample(ordinal=ordinal, role=Role(role), rows=encoded, label=label, targets=targets)

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            with _translated(self._folder):
                self._connection.execute("BEGIN IMMEDIATE")

    def _write(self, statement: str, values: tuple[object, ...]) -> int:
        self._begin()
        with _translated(self._folder):
            return self._connection.execute(statement, values).rowcount

    def _read(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with _translated(self._folder):
            return self._connection.execute(statement, values).fetchall()


def read_outbox_status(folder: Path) -> OutboxStatus:
    """What the outbox in a folder holds, without disturbing a process that uses it.

    Raises:
        StoreError: there is no outbox, or it cannot be read.
    """
    database = folder / DATABASE_FILE
    if not database.is_file():
        raise StoreError(f"no outbox in {folder}", cure="give the folder that sf-edge run named")
    with _translated(folder), contextlib.closing(_connect(database, read_only=True)) as connection:
        connection.execute("BEGIN")
        return _read_status(connection)


def _connect(database: Path, *, read_only: bool = False) -> sqlite3.Connection:
    mode = "ro" if read_only else "rwc"
    uri = f"{database.resolve().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = FAST")
    return connection


def _read_status(connection: sqlite3.Connection) -> OutboxStatus:
    outbox_id, bundle_id, device, codec, hidden, line, digest, counters = connection.execute(
        "SELECT outbox, bundle_id, device, codec, hidden, line, digest, counters FROM state"
    ).fetchone()
    waiting_samples, waiting_bytes = connection.execute(
        "SELECT COUNT(*), COALESCE(SUM(nbytes), 0) FROM samples"
    ).fetchone()
    set_aside = connection.execute("SELECT ordinal, line, code, detail FROM set_aside ORDER BY id").fetchall()
    return OutboxStatus(
        outbox_id=outbox_id,
        owner=Owner(bundle_id=bundle_id, device=device, codec=WireCodec(codec), hidden=hidden),
        position=SourcePosition(line=line, digest=digest),
        counters=msgspec.json.decode(counters, type=Counters),
        waiting_samples=waiting_samples,
        waiting_bytes=waiting_bytes,
        set_aside=[SetAside(*values) for values in set_aside],
    )


def _check_owner(folder: Path, *, found: Owner, expected: Owner) -> None:
    if found.bundle_id != expected.bundle_id:
        raise MismatchError(
            f"the outbox in {folder} belongs to bundle {found.bundle_id[:12]}..., not to {expected.bundle_id[:12]}...",
            cure="give --outbox a new folder, or --bundle the earlier bundle until its samples are delivered",
        )
    if found.device != expected.device:
        raise MismatchError(
            f"the outbox in {folder} belongs to device {found.device!r}, not to {expected.device!r}",
            cure=f"give --outbox a new folder, or --device {found.device}",
        )


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as problem:
        if getattr(problem, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DiskFull(
                f"no room left for the outbox in {folder}; everything committed so far is safe",
                cure="free some space and start again; it resumes where it stopped",
            ) from problem
        raise StoreError(
            f"the outbox in {folder} cannot be used: {problem}", cure="check the disk, or give --outbox a new folder"
        ) from problem
