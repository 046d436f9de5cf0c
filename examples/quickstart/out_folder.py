"""The demo's folder: where everything lies, and the rule that only a former demo's folder is ever emptied."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.errors import UsageError

MARKER_FILE: Final = ".splitfrozen-demo.json"


class ExportRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the bundle was exported from; a bundle is used again only if all of it is the same."""

    model: str
    split_layer: int
    max_tokens: int
    labels: str


@dataclass(frozen=True, slots=True)
class OutFolder:
    """Names of everything the demo writes."""

    path: Path

    @property
    def marker(self) -> Path:
        """Says that the folder is a demo's, and which export the bundle came from."""
        return self.path / MARKER_FILE

    @property
    def bundle(self) -> Path:
        """What the devices receive."""
        return self.path / "bundle"

    @property
    def run(self) -> Path:
        """The server's run: store, checkpoints, adapter."""
        return self.path / "run"

    @property
    def ingest(self) -> Path:
        """Written by the server once it receives devices."""
        return self.run / "ingest.json"

    @property
    def metrics(self) -> Path:
        """Written by the server, one line per training step."""
        return self.run / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """Standard output and standard error of every process."""
        return self.path / "logs"

    @property
    def validation(self) -> Path:
        """Rows no device ever sees."""
        return self.path / "validation.jsonl"

    @property
    def summary(self) -> Path:
        """The numbers of the demo."""
        return self.path / "summary.json"

    def data_of(self, device: str) -> Path:
        """The private file of a device."""
        return self.path / "devices" / f"{device}.jsonl"

    def outbox_of(self, device: str) -> Path:
        """The outbox of a device."""
        return self.path / "outbox" / device


def prepare(out: OutFolder, *, keep_bundle: bool) -> None:
    """Make the folder, or empty the one of a former demo.

    Raises:
        UsageError: the folder is a file, or holds anything and is not a demo's.
    """
    if out.path.exists() and not out.path.is_dir():
        raise UsageError(f"{out.path} is a file", cure="give an empty or new folder as --out")
    out.path.mkdir(parents=True, exist_ok=True)
    entries = sorted(out.path.iterdir())
    if entries and out.marker not in entries:
        raise UsageError(
            f"{out.path} holds files of something else ({entries[0].name})", cure="give an empty or new folder as --out"
        )
    kept = {out.marker, out.bundle} if keep_bundle else set()
    for entry in entries:
        if entry not in kept:
            _remove(entry)
    if not out.marker.exists():
        out.marker.write_bytes(b"{}")


def note_export(out: OutFolder, record: ExportRecord) -> None:
    """Remember what the bundle was exported from."""
    out.marker.write_bytes(msgspec.json.format(msgspec.json.encode(record)))


def has_bundle_of(out: OutFolder, record: ExportRecord) -> bool:
    """True when the bundle of a former demo is there and was exported from just this."""
    try:
        return out.bundle.is_dir() and msgspec.json.decode(out.marker.read_bytes(), type=ExportRecord) == record
    except (OSError, msgspec.DecodeError):
        return False


def remove_bundle(out: OutFolder) -> None:
    """Remove a bundle that is of no use any more, and forget what it was exported from."""
    out.marker.write_bytes(b"{}")
    if out.bundle.exists():
        _remove(out.bundle)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
