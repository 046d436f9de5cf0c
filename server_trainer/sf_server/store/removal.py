"""Removing samples from a store for good. For who holds the run folder's lock, or removes what nobody needs at that moment.

What is deleted is overwritten with zeros (`secure_delete`), and the log that may still hold it is emptied. `compact` writes the
whole file anew, so that what SQLite has moved about in its pages is gone too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from sf_contract.errors import StoreError
from sf_contract.messages import Role
from sf_server.store.file import Connection, open_for_writing, translated
from sf_server.store.store import HOUR_S

NO_LIMIT_BYTES: Final = 1 << 46
TEMPORARY_FILES: Final = "SQLITE_TMPDIR"
_COUNT: Final = "SELECT COUNT(*) FILTER (WHERE role = ?), COUNT(*) FILTER (WHERE role = ?), MIN(seq) FROM samples"


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed. `first_seq` is the lowest among the samples, 0 when there was none."""

    train_samples: int
    validation_samples: int
    first_seq: int

    @property
    def samples(self) -> int:
        """Of both roles."""
        return self.train_samples + self.validation_samples


class Remover:
    """A store opened in order to remove something; use it as a context manager.

    Raises:
        StoreError: here and everywhere, the store cannot be used.
        DiskFull: here and everywhere, there is no room.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise StoreError(f"there is no store at {path}", cure="give the folder of a run that has been started")
        self._path = path
        self._connection: Connection = open_for_writing(path, max_bytes=NO_LIMIT_BYTES)
        with translated(path):
            self._connection.execute("PRAGMA secure_delete = ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._connection.close()

    def device_names(self) -> list[str]:
        """Devices that ever connected and were not forgotten."""
        with translated(self._path):
            return [str(row[0]) for row in self._connection.execute("SELECT DISTINCT device FROM devices ORDER BY 1")]

    def outboxes(self, device: str) -> list[str]:
        """Outboxes of a device."""
        with translated(self._path):
            rows = self._connection.execute("SELECT outbox FROM devices WHERE device = ?", (device,))
            return [str(row[0]) for row in rows]

    def contents(self, device: str | None = None) -> Iterator[bytes]:
        """Everything that samples hold: rows, scales and targets, one after the other; of all devices without a name."""
        condition, values = _of(device)
        with translated(self._path):
            for row in self._connection.execute(f"SELECT rows, scales, targets FROM samples {condition}", values):
                yield from (bytes(content) for content in row if content)

    def seqs(self, device: str | None = None) -> list[int]:
        """Numbers of a device's samples; of all without a name."""
        condition, values = _of(device)
        with translated(self._path):
            return [int(row[0]) for row in self._connection.execute(f"SELECT seq FROM samples {condition}", values)]

    def content_bytes(self, device: str) -> int:
        """Bytes of `contents`, without reading them."""
        with translated(self._path):
            (total,) = self._connection.execute(
                "SELECT COALESCE(SUM(LENGTH(rows) + LENGTH(scales) + COALESCE(LENGTH(targets), 0)), 0) "
                "FROM samples WHERE device = ?",
                (device,),
            ).fetchone()
        return int(total)

    def remove_device(self, device: str, *, now_s: float) -> Removed:
        """Delete a device with all its samples, and note that it may not come back by itself."""
        with translated(self._path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            removed = self._counted("device = ?", device)
            self._connection.execute("DELETE FROM samples WHERE device = ?", (device,))
            self._connection.execute("DELETE FROM devices WHERE device = ?", (device,))
            self._note(device, removed, now_s=now_s)
        self.empty_log()
        return removed

    def seqs_before(self, before_s: float) -> list[int]:
        """Numbers of the samples that came before a time (seconds since 1970), to the hour."""
        with translated(self._path):
            rows = self._connection.execute("SELECT seq FROM samples WHERE seq <= ?", (self._last_before(before_s),))
            return [int(row[0]) for row in rows]

    def remove_older(self, before_s: float, *, now_s: float) -> Removed:
        """Delete samples that came before a time (seconds since 1970), to the hour; their devices stay."""
        with translated(self._path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            last_seq = self._last_before(before_s)
            removed = self._counted("seq <= ?", last_seq)
            if removed.samples:
                self._connection.execute(
                    "UPDATE devices SET samples = samples - "
                    "(SELECT COUNT(*) FROM samples WHERE samples.outbox = devices.outbox AND seq <= ?)",
                    (last_seq,),
                )
                self._connection.execute("DELETE FROM samples WHERE seq <= ?", (last_seq,))
                self._note(None, removed, now_s=now_s)
        if removed.samples:
            self.empty_log()
        return removed

    def removed_of(self, device: str) -> Removed:
        """Everything that was removed of a device and may still live on in weights that nobody has deleted since."""
        with translated(self._path):
            row = self._connection.execute(
                "SELECT COALESCE(SUM(train_samples), 0), COALESCE(SUM(validation_samples), 0), "
                "COALESCE(MIN(first_seq) FILTER (WHERE train_samples > 0), 0) "
                "FROM removals WHERE device = ? AND NOT weights_deleted",
                (device,),
            ).fetchone()
        return Removed(*row)

    def note_weights_deleted(self) -> None:
        """What was trained until now is deleted; so nothing that was removed lives on."""
        with translated(self._path):
            self._connection.execute("UPDATE removals SET weights_deleted = 1")

    def readmit(self, device: str) -> bool:
        """Let a forgotten device in again; False when it was none."""
        with translated(self._path):
            return (
                self._connection.execute(
                    "UPDATE removals SET is_banned = 0 WHERE device = ? AND is_banned = 1", (device,)
                ).rowcount
                > 0
            )

    def compact(self) -> None:
        """Write the file anew, without what was deleted; its temporary copy lies in the run folder, not elsewhere."""
        os.environ[TEMPORARY_FILES] = str(self._path.parent)
        with translated(self._path):
            self._connection.execute("VACUUM")
        self.empty_log()

    def empty_log(self) -> None:
        """Move everything from the write-ahead log into the file, and cut the log to nothing."""
        with translated(self._path):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _last_before(self, before_s: float) -> int:
        """The newest sample of the hours that ended before a time; 0 when there is none."""
        found = self._connection.execute(
            "SELECT COALESCE(MAX(last_seq), 0) FROM arrivals WHERE hour < ?", (int(before_s // HOUR_S),)
        ).fetchone()
        return int(found[0])

    def _counted(self, condition: str, value: object) -> Removed:
        values = (Role.TRAIN.value, Role.VALIDATION.value, value)
        train, validation, first = self._connection.execute(f"{_COUNT} WHERE {condition}", values).fetchone()
        return Removed(train_samples=train, validation_samples=validation, first_seq=first or 0)

    def _note(self, device: str | None, removed: Removed, *, now_s: float) -> None:
        self._connection.execute(
            "INSERT INTO removals(at_s, device, train_samples, validation_samples, first_seq, is_banned) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                now_s,
                device,
                removed.train_samples,
                removed.validation_samples,
                removed.first_seq,
                device is not None,
            ),
        )


def _of(device: str | None) -> tuple[str, tuple[str, ...]]:
    return ("", ()) if device is None else ("WHERE device = ?", (device,))
