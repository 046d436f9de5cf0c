"""The device's durable queue.

A sample, its ordinal and the position in its source change in one transaction, synced to the disk before it counts;
so whenever the process dies, no row is skipped and none is taken twice. Only committed samples are ever offered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sf_contract.activations import TARGET_DTYPE, EncodedSample
from sf_contract.codec import EncodedRows, WireCodec, row_columns, row_dtype, scale_dtype
from sf_contract.errors import MismatchError
from sf_contract.messages import AlreadyStored, Rejected, Role, Stored, Verdict
from sf_edge.counters import Counters
from sf_edge.outbox.file import OutboxFile
from sf_edge.outbox.lock import FolderLock
from sf_edge.outbox.place import find_outbox
from sf_edge.outbox.records import Offer, OutboxStatus, Owner, SetAside
from sf_edge.sources import SourcePosition


class Outbox:
    """An open outbox; use as a context manager. Leaving it without `commit` gives up the open transaction.

    Args:
        folder: made when missing, readable by its owner only.
        owner: must be the one the outbox was made with.
        max_bytes: payload bytes `has_room` lets it grow to.

    Attributes:
        positions: how far each source was taken, by its name.

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
        self._source_ids: dict[str, int] = {}
        self._moved: set[str] = set()
        with contextlib.ExitStack() as undo:
            undo.enter_context(FolderLock(folder))
            self._file = undo.enter_context(contextlib.closing(OutboxFile(folder)))
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
        return self._file.is_changed

    def has_room(self, nbytes: int) -> bool:
        """True when a sample of this size may be added; an empty outbox takes one of any size."""
        return self.waiting_samples == 0 or self.waiting_bytes + nbytes <= self._max_bytes

    def append(self, sample: EncodedSample, position: SourcePosition) -> None:
        """Add a sample that has `next_ordinal`, made from the row that ends at `position`."""
        targets = None if sample.targets is None else sample.targets.astype(TARGET_DTYPE).tobytes()
        rows = sample.rows.rows.tobytes()
        scales = sample.rows.scales.astype(scale_dtype(sample.rows.codec)).tobytes()
        values = (
            sample.ordinal, self._source_id(position.source), position.line, sample.role.value, sample.label,
            sample.rows.tokens, sample.nbytes, rows, scales, targets,
        )  # fmt: skip
        self._file.write("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        self.next_ordinal = sample.ordinal + 1
        self._note_position(position)
        self.waiting_samples += 1
        self.waiting_bytes += sample.nbytes

    def skip(self, position: SourcePosition) -> None:
        """Note that the row that ends at `position` gave no sample."""
        self._file.begin()
        self._note_position(position)

    def set_row_aside(self, position: SourcePosition, *, code: str, detail: str) -> None:
        """Like `skip`, and `status` will show the reason."""
        self.skip(position)
        values = (self._source_id(position.source), position.line, code, detail)
        self._file.write("INSERT INTO set_aside VALUES (NULL, NULL, ?, ?, ?, ?)", values)

    def move_sources(self, moves: Mapping[str, str]) -> None:
        """Note that sources have other names now, earlier to present; what they were taken up to stays."""
        found = {
            present: self.positions.pop(earlier) for earlier, present in moves.items() if earlier in self.positions
        }
        ids = {
            present: self._source_ids.pop(earlier) for earlier, present in moves.items() if earlier in self._source_ids
        }
        for source_id in ids.values():  # a name may be free only once its owner has moved on
            self._file.write("UPDATE sources SET name = '/' || id WHERE id = ?", (source_id,))
        for present, source_id in ids.items():
            self._file.write("UPDATE sources SET name = ? WHERE id = ?", (present, source_id))
        self._source_ids.update(ids)
        for present, position in found.items():
            self._note_position(dataclasses.replace(position, source=present))

    def offers(self, *, after: int, limit: int) -> list[Offer]:
        """Committed samples with an ordinal above `after`, oldest first."""
        found = self._file.read(
            "SELECT ordinal, nbytes FROM samples WHERE ordinal > ? AND ordinal < ? ORDER BY ordinal LIMIT ?",
            (after, self._committed_ordinals, limit),
        )
        return [Offer(ordinal=ordinal, nbytes=nbytes) for ordinal, nbytes in found]

    def load(self, ordinals: Sequence[int]) -> list[EncodedSample]:
        """The samples with these ordinals, those that are still there, in ascending order."""
        found = self._file.read(
            "SELECT ordinal, role, label, tokens, row_data, scale_data, target_data FROM samples"
            f" WHERE ordinal IN ({', '.join('?' * len(ordinals))}) ORDER BY ordinal",
            tuple(ordinals),
        )
        return [self._sample(values) for values in found]

    def mark_sent(self, ordinals: Sequence[int]) -> int:
        """Note that samples are about to be sent, oldest first as always; how many of them for the first time."""
        self._file.begin()
        first_times = sum(ordinal >= self._unsent_from for ordinal in ordinals)
        self._unsent_from = max(self._unsent_from, *(ordinal + 1 for ordinal in ordinals))
        return first_times

    def settle(self, verdicts: Sequence[Verdict]) -> int:
        """Forget what the server stored and set aside what it rejected; how many samples that settled.

        Verdicts on ordinals the outbox does not hold (any more), or has never sent, are ignored. Counts them in `counters`.
        """
        return sum(self._settle_one(verdict) for verdict in verdicts)

    def commit(self) -> None:
        """Make everything since the last commit durable, with the counters."""
        for name in sorted(self._moved):
            position = self.positions[name]
            self._file.write(
                "UPDATE sources SET line = ?, nbytes = ?, digest = ? WHERE id = ?",
                (position.line, position.nbytes, position.digest, self._source_id(name)),
            )
        state = (self.next_ordinal, self._unsent_from, msgspec.json.encode(self.counters))
        self._file.write("UPDATE state SET next_ordinal = ?, unsent_from = ?, counters = ?", state)
        self._file.commit()
        self._moved.clear()
        self._committed_ordinals = self.next_ordinal

    def status(self) -> OutboxStatus:
        """What the outbox holds."""
        return _read_status(self._file)

    def _load(self) -> None:
        if self._file.is_new:
            self._create()
        status = self.status()
        check_owner(self._folder, found=status.owner, expected=self._owner)
        self.outbox_id = status.outbox_id
        self.positions = {position.source: position for position in status.positions}
        self._source_ids = dict(self._file.read("SELECT name, id FROM sources"))
        self.counters = status.counters
        self.waiting_samples = status.waiting_samples
        self.waiting_bytes = status.waiting_bytes
        row = self._file.read("SELECT next_ordinal, unsent_from FROM state")[0]
        self.next_ordinal, self._unsent_from = int(row[0]), int(row[1])
        self._committed_ordinals = self.next_ordinal

    def _create(self) -> None:
        owner = self._owner
        self._file.make_tables()
        self._file.write(
            "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, 0, 0, ?)",
            (
                os.urandom(16).hex(),
                owner.bundle_id,
                owner.device,
                owner.codec.value,
                owner.hidden,
                msgspec.json.encode(Counters()),
            ),
        )
        self._file.commit()

    def _note_position(self, position: SourcePosition) -> None:
        self._source_id(position.source)
        self.positions[position.source] = position
        self._moved.add(position.source)

    def _source_id(self, name: str) -> int:
        if name not in self._source_ids:
            self._source_ids[name] = self._file.write("INSERT INTO sources VALUES (NULL, ?, 0, 0, '')", (name,))
        return self._source_ids[name]

    def _settle_one(self, verdict: Verdict) -> int:
        found = self._file.read("SELECT nbytes, source, line FROM samples WHERE ordinal = ?", (verdict.ordinal,))
        if not found or verdict.ordinal >= self._unsent_from:
            return 0
        nbytes, source, line = found[0]
        match verdict:
            case Stored() | AlreadyStored():
                self.counters.acknowledged += 1
            case Rejected(ordinal=ordinal, code=code, detail=detail):
                values = (ordinal, source, line, code.value, detail)
                self._file.write("INSERT INTO set_aside VALUES (NULL, ?, ?, ?, ?, ?)", values)
                self.counters.rejected += 1
        self._file.write("DELETE FROM samples WHERE ordinal = ?", (verdict.ordinal,))
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


def read_outbox_status(folder: Path) -> OutboxStatus:
    """What an outbox holds, without disturbing a process that uses it.

    Args:
        folder: the outbox, or a folder that holds one.

    Raises:
        StoreError: there is no outbox or more than one, or it cannot be read.
    """
    with contextlib.closing(OutboxFile(find_outbox(folder), read_only=True)) as file:
        file.read("BEGIN")
        return _read_status(file)


def _read_status(file: OutboxFile) -> OutboxStatus:
    outbox_id, bundle_id, device, codec, hidden, counters = file.read(
        "SELECT outbox, bundle_id, device, codec, hidden, counters FROM state"
    )[0]
    waiting_samples, waiting_bytes = file.read("SELECT COUNT(*), COALESCE(SUM(nbytes), 0) FROM samples")[0]
    positions = file.read("SELECT line, digest, nbytes, name FROM sources ORDER BY name")
    set_aside = file.read(
        "SELECT ordinal, line, code, detail, (SELECT name FROM sources WHERE id = source) FROM set_aside ORDER BY id"
    )
    return OutboxStatus(
        outbox_id=outbox_id,
        owner=Owner(bundle_id=bundle_id, device=device, codec=WireCodec(codec), hidden=hidden),
        positions=[SourcePosition(*values) for values in positions],
        counters=msgspec.json.decode(counters, type=Counters),
        waiting_samples=waiting_samples,
        waiting_bytes=waiting_bytes,
        set_aside=[SetAside(*values) for values in set_aside],
    )


def check_owner(folder: Path, *, found: Owner, expected: Owner) -> None:
    """Refuse an outbox that belongs to another bundle or device.

    Raises:
        MismatchError: saying to which.
    """
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
