"""The run folder: everything one training run keeps, and who may work in it.

settings.json   settings and bundle ids of the run, written once, replaced only by a resume
train.lock      held by the supervisor and its children as long as one of them lives
store.sqlite    received samples
lifted.sqlite   samples as they enter the first layer with LoRA: a cache, made again when it is missing
ingest.json     address on which devices are received, and the process that does it
checkpoints/    newest valid states of the trainer
server.key      the run's own key for encrypted links, with its .pub
authorized/     public keys of devices
lora.json       what got LoRA, and how
adapter/        the result
metrics.jsonl   one line per step
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.errors import AlreadyRunning, MismatchError, StoreError, UsageError
from sf_contract.key_files import PUBLIC_KEY_SUFFIX
from sf_contract.messages import BundleId
from sf_server.link.security import AUTHORIZED_FOLDER, KEY_FILE
from sf_server.settings import MAY_CHANGE_ON_RESUME, TrainSettings, differences

FORMAT_VERSION: Final = 2
LOCK_POLL_S: Final = 0.1
_TEMPORARY_SUFFIX: Final = ".tmp"
_MADE_BEFORE: Final = frozenset({KEY_FILE, KEY_FILE + PUBLIC_KEY_SUFFIX, AUTHORIZED_FOLDER})
"""Keys may be put into the folder before the run is made."""


class RunRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of `settings.json`."""

    format_version: int
    bundle_ids: tuple[BundleId, ...]
    settings: TrainSettings


class IngestRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of `ingest.json`: the address actually bound, and the process that holds it."""

    address: str
    pid: int


class RunFolder:
    """Names of everything inside a run folder, and the rules for making and resuming one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_path = path / "settings.json"
        self.lock_path = path / "train.lock"
        self.lifted_path = path / "lifted.sqlite"
        self.lora_path = path / "lora.json"
        self.store_path = path / "store.sqlite"
        self.ingest_path = path / "ingest.json"
        self.checkpoints_path = path / "checkpoints"
        self.adapter_path = path / "adapter"
        self.metrics_path = path / "metrics.jsonl"

    def exists(self) -> bool:
        """True when there is a run to resume."""
        return self.settings_path.is_file()

    def record(self) -> RunRecord:
        """Settings and bundle ids of the run.

        Raises:
            UsageError: there is no run here.
            StoreError: its settings cannot be read.
        """
        try:
            raw = self.settings_path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"there is no run in {self.path}", cure="give the folder that sf-server train made with --run"
            ) from None
        try:
            record = msgspec.json.decode(raw, type=RunRecord)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise StoreError(
                f"{self.settings_path} cannot be read: {problem}", cure="start a new run in another folder"
            ) from problem
        if record.format_version != FORMAT_VERSION:
            raise StoreError(
                f"{self.settings_path} has format version {record.format_version}, this program reads {FORMAT_VERSION}",
                cure="use the SplitFrozen version that made the run",
            )
        return record

    def settings(self) -> TrainSettings:
        """Settings of the run; raises as `record` does."""
        return self.record().settings

    def create(self, settings: TrainSettings, *, bundle_ids: Sequence[str]) -> None:
        """Make the run; call with the lock held.

        Raises:
            UsageError: there is a run already, or the folder holds something else.
        """
        if self.exists():
            raise UsageError(
                f"there is a run in {self.path} already", cure="go on with it with --resume, or give another --run"
            )
        ours = {self.lock_path.name, self._temporary_name(), *_MADE_BEFORE}
        strangers = [name for name in self._entries() if name not in ours]
        if strangers:
            raise UsageError(
                f"{self.path} holds other files ({strangers[0]}) and no run",
                cure="give an empty or new folder as --run",
            )
        self._write_record(settings, bundle_ids)

    def resume(self, settings: TrainSettings, *, bundle_ids: Sequence[str]) -> None:
        """Go on with the run; call with the lock held. Settings that do not change the result are taken over.

        Raises:
            UsageError: there is no run.
            MismatchError: the bundles or a setting that changes the result differ from the run's.
        """
        old = self.record()
        changed = differences(old.settings, settings, apart_from=MAY_CHANGE_ON_RESUME)
        if set(bundle_ids) != set(old.bundle_ids):
            changed.insert(0, f"--bundle {_short(old.bundle_ids)} -> {_short(bundle_ids)}")
        if changed:
            raise MismatchError(
                f"the run in {self.path} was started differently: {', '.join(changed)}",
                cure="resume without these changes, or start a new run in another folder",
            )
        self._write_record(settings, bundle_ids)

    @contextmanager
    def lock(self, *, wait_s: float = 0) -> Iterator[int]:
        """Hold the folder for one supervisor; yields the descriptor, which children inherit to hold it too.

        Args:
            wait_s: how long to wait for the processes of a killed supervisor to leave.

        Raises:
            AlreadyRunning: another process holds it.
            UsageError: the folder cannot be made.
        """
        self._make()
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + wait_s
            while not _try_lock(descriptor):
                if time.monotonic() >= deadline:
                    raise AlreadyRunning(
                        f"another sf-server train works in {self.path}", cure="stop it first, or give another --run"
                    )
                time.sleep(LOCK_POLL_S)
            yield descriptor
        finally:
            os.close(descriptor)

    def announce_ingest(self, record: IngestRecord) -> None:
        """Say where devices are received."""
        write_atomically(self.ingest_path, msgspec.json.encode(record))

    def ingest_record(self) -> IngestRecord | None:
        """Where devices are received; None as long as nobody has said so."""
        try:
            return msgspec.json.decode(self.ingest_path.read_bytes(), type=IngestRecord)
        except FileNotFoundError:
            return None

    def _make(self) -> None:
        """What devices sent can be turned back into text, so the folder is its owner's alone."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as problem:
            raise UsageError(
                f"{self.path} cannot be made: {problem.strerror}", cure="give a folder you may write to as --run"
            ) from problem

    def _entries(self) -> list[str]:
        return sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []

    def _temporary_name(self) -> str:
        return self.settings_path.name + _TEMPORARY_SUFFIX

    def _write_record(self, settings: TrainSettings, bundle_ids: Sequence[str]) -> None:
        self._make()
        record = RunRecord(format_version=FORMAT_VERSION, bundle_ids=tuple(bundle_ids), settings=settings)
        write_atomically(self.settings_path, msgspec.json.format(msgspec.json.encode(record)))


def _short(bundle_ids: Sequence[str]) -> str:
    return ",".join(sorted(bundle_id[:12] for bundle_id in bundle_ids))


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that after a crash it is either the old or the new one, and durable once this returns."""
    temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True
