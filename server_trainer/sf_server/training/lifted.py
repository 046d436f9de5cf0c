"""The lifted samples of a run: rows as they enter the first layer with LoRA. A door to SQLite; needs no torch.

A cache: whatever is missing can be computed again from the store. The trainer alone writes to it; `forget` takes samples out.
A file of another base model, layer or dtype is thrown away when the trainer opens it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt

from sf_contract.activations import TARGET_DTYPE, Targets
from sf_contract.codec import EncodedRows, WireCodec
from sf_contract.errors import DiskFull, StoreError
from sf_contract.limits import KIB, MIB
from sf_server.store.stored import Origin, StoredSample

APPLICATION_ID: Final = int.from_bytes(b"SFli", "big")
FORMAT_VERSION: Final = 1
PAGE_BYTES: Final = 16 * KIB
WAL_BYTES_KEPT: Final = 64 * MIB
BUSY_TIMEOUT_S: Final = 30.0
_SEQS_PER_QUERY: Final = 500
_SCHEMA: Final = f"""
CREATE TABLE about(identity TEXT NOT NULL) STRICT;
CREATE TABLE lifted(
    seq INTEGER PRIMARY KEY,
    bundle_id TEXT NOT NULL,
    outbox TEXT NOT NULL,
    ordinal INTEGER NOT NULL,
    device TEXT NOT NULL,
    label INTEGER,
    tokens INTEGER NOT NULL,
    rows BLOB NOT NULL,
    targets BLOB
) STRICT;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT_VERSION};
"""

RowsDtype = Literal["bfloat16", "float16", "float32"]
_ITEM_DTYPES: Final[Mapping[RowsDtype, np.dtype[np.generic]]] = {
    "bfloat16": np.dtype("<u2"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}

RawRows = npt.NDArray[np.uint8]
"""`[tokens, bytes of a row]`: rows in the dtype that the back end computes in, bit for bit."""


class LiftedIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lifted rows depend on besides the sample: the base model, the layer they enter, and how they are written."""

    weights_sha256: str
    config_sha256: str
    layer: int
    hidden: int
    dtype: RowsDtype


@dataclass(frozen=True, slots=True, eq=False)
class LiftedSample:
    """One sample to be kept."""

    seq: int
    origin: Origin
    device: str
    label: int | None
    targets: Targets | None
    rows: RawRows


class LiftedFile:
    """An open file. Every thread that uses it gets a connection of its own."""

    def __init__(self, path: Path, identity: LiftedIdentity) -> None:
        self._path = path
        self._identity = identity
        self._of_thread = threading.local()
        self._opened: list[sqlite3.Connection] = []

    @classmethod
    def open(cls, path: Path, identity: LiftedIdentity, *, say: Callable[[str], None]) -> Self:
        """Open for reading and writing; a file that belongs to something else, or is damaged, is made anew.

        Raises:
            StoreError: the file can be neither used nor replaced.
            DiskFull: there is no room to make it.
        """
        opened = cls(path, identity)
        reason = opened._reason_against()
        if reason is not None:
            say(f"{path.name} {reason}: the samples are lifted again")
            opened.close()
            _remove(path)
        with _translated(path):
            opened._prepare()
        return opened

    def close(self) -> None:
        """Close the file in all threads."""
        while self._opened:
            self._opened.pop().close()
        self._of_thread = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def present(self, *, first_seq: int, last_seq: int) -> dict[int, Origin]:
        """Samples that are there, of a range of `seq` that includes both ends."""
        with _translated(self._path):
            found = self._connection.execute(
                "SELECT seq, bundle_id, outbox, ordinal FROM lifted WHERE seq BETWEEN ? AND ?", (first_seq, last_seq)
            )
            return {row[0]: Origin(*row[1:]) for row in found}

    def add(self, samples: Sequence[LiftedSample]) -> None:
        """Keep samples, all or none; those that are there already stay as they are.

        Raises:
            DiskFull: there is no room; nothing was kept.
        """
        with _translated(self._path), self._transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO lifted VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_columns, samples)
            )

    def load(self, seqs: Sequence[int]) -> dict[int, StoredSample]:
        """Those of the samples that are there, with their rows in fp32, which changes none of them."""
        found: dict[int, StoredSample] = {}
        for start in range(0, len(seqs), _SEQS_PER_QUERY):
            part = seqs[start : start + _SEQS_PER_QUERY]
            marks = ",".join("?" * len(part))
            with _translated(self._path):
                for seq, device, label, rows, targets in self._connection.execute(
                    f"SELECT seq, device, label, rows, targets FROM lifted WHERE seq IN ({marks})", list(part)
                ):
                    numbers = None if targets is None else np.frombuffer(targets, dtype=TARGET_DTYPE)
                    found[seq] = StoredSample(
                        seq=seq, device=device, rows=self._in_fp32(rows), label=label, targets=numbers
                    )
        return found

    def forget(self, seqs: Sequence[int]) -> int:
        """Take samples out so that nothing of them is left in the file, and compact it; how many were there."""
        with _translated(self._path):
            return _forget(self._connection, seqs)

    def _in_fp32(self, raw: bytes) -> EncodedRows:
        items = np.frombuffer(raw, dtype=_ITEM_DTYPES[self._identity.dtype]).reshape(-1, self._identity.hidden)
        if self._identity.dtype == "bfloat16":  # the upper half of a float32
            rows = (items.astype(np.uint32) << 16).view(np.float32)
        else:
            rows = items.astype(np.float32)
        return EncodedRows(codec=WireCodec.FP32, rows=rows, scales=np.zeros((len(rows), 0), dtype=np.float32))

    @property
    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            connection = self._of_thread.connection = _connect(self._path)
            self._opened.append(connection)
        return connection

    def _reason_against(self) -> str | None:
        """Why the file cannot be used; None when it can, or when there is none."""
        if not self._path.exists():
            return None
        try:
            if self._connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
                return "is something else"
            if self._connection.execute("PRAGMA user_version").fetchone() != (FORMAT_VERSION,):
                return "has another format version"
            (found,) = self._connection.execute("SELECT identity FROM about").fetchone()
        except (sqlite3.Error, TypeError) as problem:
            return f"cannot be read ({problem})"
        return None if found == self._identity_text() else "belongs to another base model, layer or dtype"

    def _identity_text(self) -> str:
        return msgspec.json.encode(self._identity).decode()

    def _prepare(self) -> None:
        connection = self._connection
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
        if connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone() == (0,):
            with self._transaction():
                for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
                    connection.execute(statement)
                connection.execute("INSERT INTO about VALUES (?)", (self._identity_text(),))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def forget_lifted(path: Path, seqs: Sequence[int]) -> int:
    """Take samples out of a run's lifted samples, whatever they were lifted with; how many were there.

    Raises:
        StoreError: the file cannot be used.
    """
    if not path.is_file():
        return 0
    with _translated(path):
        connection = _connect(path)
        try:
            return _forget(connection, seqs)
        finally:
            connection.close()


def lifted_contents(path: Path, seqs: Sequence[int]) -> Iterator[bytes]:
    """Everything that is kept of samples, for who wants to find it in the raw file."""
    if not path.is_file():
        return
    with _translated(path):
        connection = _connect(path)
        try:
            for seq in seqs:
                for row in connection.execute("SELECT rows, targets FROM lifted WHERE seq = ?", (seq,)):
                    yield from (bytes(content) for content in row if content)
        finally:
            connection.close()


def lifted_after(path: Path, seq: int) -> tuple[int, int]:
    """How many lifted samples there are with a higher `seq`, and the highest of all (0 without any); does not write."""
    with _translated(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)
        try:
            connection.execute("PRAGMA query_only = ON")
            (new,) = connection.execute("SELECT COUNT(*) FROM lifted WHERE seq > ?", (seq,)).fetchone()
            (highest,) = connection.execute("SELECT COALESCE(MAX(seq), 0) FROM lifted").fetchone()
        finally:
            connection.close()
    return int(new), int(highest)


def _forget(connection: sqlite3.Connection, seqs: Sequence[int]) -> int:
    connection.execute("BEGIN IMMEDIATE")
    removed = sum(connection.execute("DELETE FROM lifted WHERE seq = ?", (seq,)).rowcount for seq in seqs)
    connection.execute("COMMIT")
    if removed:
        connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return removed


def _columns(sample: LiftedSample) -> tuple[object, ...]:
    origin, targets = sample.origin, sample.targets
    return (
        sample.seq,
        origin.bundle_id,
        origin.outbox,
        origin.ordinal,
        sample.device,
        sample.label,
        len(sample.rows),
        np.ascontiguousarray(sample.rows).tobytes(),
        None if targets is None else np.ascontiguousarray(targets, dtype=TARGET_DTYPE).tobytes(),
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")  # what a power cut takes from the end is lifted again
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _remove(path: Path) -> None:
    try:
        for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            file.unlink(missing_ok=True)
    except OSError as problem:
        raise StoreError(
            f"{path} cannot be removed: {problem.strerror}", cure="remove it, or move it away"
        ) from problem


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as problem:
        if getattr(problem, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise DiskFull(
                f"no room left for lifted samples in {path}", cure="free some space; --resume lifts the rest"
            ) from problem
        raise StoreError(
            f"{path} cannot be used: {problem}", cure="remove it: it is a cache, and is made again"
        ) from problem
