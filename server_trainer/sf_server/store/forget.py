"""Forgetting a device: its samples are removed from everything a run keeps, and every file is searched for what is left."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.errors import StoreError
from sf_contract.limits import MIB
from sf_server.run_folder import RunFolder
from sf_server.store.file import log_path
from sf_server.store.removal import Removed, Remover
from sf_server.store.traces import BLOCK_BYTES, MOST_TRACES, Traces, traces_of
from sf_server.training.lifted import forget_lifted, lifted_contents

Say = Callable[[str], None]

LONG_BYTES: Final = 64 * MIB
"""Searching a file of this size takes a moment and is told."""


class Proof(msgspec.Struct, frozen=True):
    """What a search of every file of the run found.

    Attributes:
        traces: different strings of 16 bytes that were looked for, one from every 4 KiB of a sample, of many every few.
        found_before: those found before the removal; a string that lies across two pages of a file is not found in one piece.
        shared: those found afterwards, because samples of other devices that are still there hold the same bytes.
        files: files that were searched afterwards, `nbytes` in all.
        outboxes: outbox ids that were looked for; none was found afterwards.
    """

    traces: int
    found_before: int
    shared: int
    files: int
    nbytes: int
    outboxes: int


class Forgotten(msgspec.Struct, frozen=True):
    """What `sf-server forget` did. `influenced` are the folders whose weights were trained on removed samples."""

    device: str
    train_samples: int
    validation_samples: int
    outboxes: int
    bytes_before: int
    bytes_after: int
    lifted_samples: int
    proof: Proof
    influenced: tuple[str, ...]
    influenced_deleted: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """What is looked for: traces of the samples, and outbox ids."""

    traces: Traces
    outboxes: tuple[bytes, ...]

    def in_file(self, path: Path) -> tuple[frozenset[bytes], frozenset[bytes]]:
        ids = frozenset(outbox for outbox in self.outboxes if _holds(path, outbox))
        return self.traces.found_in_file(path), ids


def forget_device(folder: RunFolder, device: str, *, delete_adapters: bool, now_s: float, say: Say) -> Forgotten:
    """Remove a device from a run; call with the run folder's lock held.

    Raises:
        StoreError: the store cannot be used, or something of the samples is still there afterwards.
        DiskFull: there is no room to write the store anew; what was deleted is gone, and can be searched for again.
    """
    before_bytes = _store_bytes(folder)
    with Remover(folder.store_path) as remover:
        remover.empty_log()
        seqs = remover.seqs(device)
        search = _search_for(remover, folder, device, seqs)
        found_before = _found(search, _files(folder.path), say)
        removed = remover.remove_device(device, now_s=now_s)
        lifted_samples = forget_lifted(folder.lifted_path, seqs)
        remover.compact()
        influenced = tuple(influenced_by(folder, remover.removed_of(device)))
        if delete_adapters:
            _delete_weights(folder)
            remover.note_weights_deleted()
        proof = _proof(search, folder, remover, found_before=len(found_before), say=say)
    return Forgotten(
        device=device,
        train_samples=removed.train_samples,
        validation_samples=removed.validation_samples,
        outboxes=len(search.outboxes),
        bytes_before=before_bytes,
        bytes_after=_store_bytes(folder),
        lifted_samples=lifted_samples,
        proof=proof,
        influenced=tuple(map(str, influenced)),
        influenced_deleted=delete_adapters and bool(influenced),
    )


class _Position(msgspec.Struct, frozen=True):
    epoch: int = 1
    upto_seq: int = 0


class _State(msgspec.Struct, frozen=True):
    step: int = 0
    position: _Position = _Position()


def influenced_by(folder: RunFolder, removed: Removed) -> list[Path]:
    """The adapter and the checkpoints that may have been trained on any of the removed samples.

    A checkpoint tells how far it is; one that cannot be read counts as influenced.
    """
    if not removed.train_samples:
        return []
    adapters = [folder.adapter_path] if folder.adapter_path.is_dir() else []
    checkpoints = sorted(folder.checkpoints_path.iterdir()) if folder.checkpoints_path.is_dir() else []
    return [*adapters, *(path for path in checkpoints if _has_seen(path, removed.first_seq))]


def _delete_weights(folder: RunFolder) -> None:
    """All of them: a checkpoint that has seen none of the samples is of no use without the rest."""
    for path in (folder.adapter_path, folder.checkpoints_path):
        if path.is_dir():
            shutil.rmtree(path)


def _has_seen(checkpoint: Path, first_seq: int) -> bool:
    try:
        state = msgspec.json.decode((checkpoint / "state.json").read_bytes(), type=_State)
    except (OSError, msgspec.DecodeError):
        return True
    return state.step > 0 and (state.position.epoch > 1 or first_seq <= state.position.upto_seq)


def _search_for(remover: Remover, folder: RunFolder, device: str, seqs: Sequence[int]) -> _Search:
    every = max(BLOCK_BYTES, remover.content_bytes(device) // MOST_TRACES)
    contents = chain(remover.contents(device), lifted_contents(folder.lifted_path, seqs))
    pieces = (piece for content in contents for piece in traces_of(content, every=every))
    return _Search(Traces(pieces), tuple(outbox.encode() for outbox in remover.outboxes(device)))


def _found(search: _Search, files: Iterable[Path], say: Say) -> frozenset[bytes]:
    found: frozenset[bytes] = frozenset()
    for path in files:
        _tell(path, say)
        found |= search.in_file(path)[0]
    return found


def _tell(path: Path, say: Say) -> None:
    nbytes = path.stat().st_size
    if nbytes >= LONG_BYTES:
        say(f"searching {path} ({nbytes:,} bytes)")


def _proof(search: _Search, folder: RunFolder, remover: Remover, *, found_before: int, say: Say) -> Proof:
    """Search everything again.

    Raises:
        StoreError: something was found that no other sample holds.
    """
    files = list(_files(folder.path))
    shared: frozenset[bytes] = frozenset()
    for path in files:
        _tell(path, say)
        left, ids = search.in_file(path)
        new = left - shared
        if new:
            shared |= _held_by_others(search, remover, folder) & new
        if ids or left - shared:
            raise StoreError(
                f"{path} still holds {len(left - shared)} strings of bytes of the removed samples and {len(ids)} outbox ids",
                cure="keep the file from others, and report this; deleting the whole run folder removes it",
            )
    return Proof(
        traces=len(search.traces),
        found_before=found_before,
        shared=len(shared),
        files=len(files),
        nbytes=sum(path.stat().st_size for path in files),
        outboxes=len(search.outboxes),
    )


def _held_by_others(search: _Search, remover: Remover, folder: RunFolder) -> frozenset[bytes]:
    found: frozenset[bytes] = frozenset()
    for content in chain(remover.contents(), lifted_contents(folder.lifted_path, remover.seqs())):
        found |= search.traces.found_in(content)
    return found


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _store_bytes(folder: RunFolder) -> int:
    paths = (folder.store_path, log_path(folder.store_path), *_with_companions(folder.lifted_path))
    return sum(path.stat().st_size for path in paths if path.exists())


def _with_companions(path: Path) -> tuple[Path, ...]:
    return (path, log_path(path), path.with_name(path.name + "-shm"))


def _holds(path: Path, wanted: bytes) -> bool:
    rest = b""
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            if wanted in rest + chunk:
                return True
            rest = chunk[-len(wanted) + 1 :]
    return False
