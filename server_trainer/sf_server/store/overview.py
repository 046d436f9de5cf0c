"""What a store tells about itself: devices, counts, sizes, and what was removed from it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from sf_contract.messages import Role
from sf_server.store.file import Connection, log_path, translated
from sf_server.store.stored import DeviceSummary, Removals, RoleTotal, StoreCounts, StoreSize, device_summary


class StoreOverview:
    """An open store, seen from above; close it, or use it as a context manager."""

    def __init__(self, path: Path, connection: Connection) -> None:
        self._path = path
        self._connection = connection

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def owner(self, outbox: str) -> str | None:
        """Name of the device an outbox belongs to; None for an outbox never seen."""
        with translated(self._path):
            row = self._connection.execute("SELECT device FROM devices WHERE outbox = ?", (outbox,)).fetchone()
        return None if row is None else str(row[0])

    def device_summaries(self) -> list[DeviceSummary]:
        """All outboxes ever seen, by device name, the one used last at the end of each device."""
        columns = ", ".join(DeviceSummary.__dataclass_fields__)
        with translated(self._path):
            rows = self._connection.execute(f"SELECT {columns} FROM devices ORDER BY device, last_seen_s, outbox")
            return [device_summary(row) for row in rows]

    def counts(self) -> StoreCounts:
        """Samples, tokens and devices; cheap enough to ask every second."""
        with translated(self._path):
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
            removed=self.removals(),
        )

    def totals(self, *, after_seq: int = 0) -> dict[Role, RoleTotal]:
        """Samples with a higher `seq` than `after_seq`; with a recent one, cheap enough for many times a second."""
        totals: dict[Role, RoleTotal] = {}
        with translated(self._path):
            for role in Role:
                row = self._connection.execute(
                    "SELECT COUNT(*), COALESCE(SUM(tokens), 0), COALESCE(MAX(seq), 0) "
                    "FROM samples INDEXED BY samples_by_role WHERE role = ? AND seq > ?",
                    (role.value, after_seq),
                ).fetchone()
                totals[role] = RoleTotal(*row)
        return totals

    def sample_count(self) -> int:
        """Samples of all roles: a hundredth of the work of `totals`."""
        with translated(self._path):
            (count,) = self._connection.execute("SELECT COUNT(*) FROM samples").fetchone()
        return int(count)

    def size(self) -> StoreSize:
        """Room that samples take of the quota, and bytes of the files on the disk."""
        with translated(self._path):
            pages, free, page_bytes = (
                self._connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
        files = (self._path, log_path(self._path))
        on_disk = sum(file.stat().st_size for file in files if file.exists())
        return StoreSize(used_bytes=(pages - free) * page_bytes, file_bytes=on_disk)

    def removals(self) -> Removals:
        """What was removed from the store so far."""
        with translated(self._path):
            if not self._connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'removals'").fetchone():
                return Removals()
            rows = self._connection.execute("SELECT train_samples, device, is_banned FROM removals").fetchall()
        return Removals(train_samples=sum(row[0] for row in rows), banned=frozenset(row[1] for row in rows if row[2]))
