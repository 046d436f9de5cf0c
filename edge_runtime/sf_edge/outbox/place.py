"""Where a device's outboxes are: one folder per bundle, so that a changed bundle begins a new one beside the earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sf_contract.errors import StoreError
from sf_edge.outbox.records import OutboxStatus

DATABASE_FILE: Final = "outbox.sqlite3"

_NAME_CHARACTERS: Final = 16

ReadStatus = Callable[[Path], OutboxStatus]


def outbox_folder(root: Path, bundle_id: str) -> Path:
    """The outbox of a bundle: a folder of its own in `root`; `root` itself when that already is an outbox."""
    return root if has_outbox(root) else root / bundle_id[:_NAME_CHARACTERS]


def find_outbox(folder: Path) -> Path:
    """The outbox meant by a folder: itself, or the only one in it.

    Raises:
        StoreError: there is none, or more than one.
    """
    found = list(_outboxes(folder))
    if not found:
        raise StoreError(f"no outbox in {folder}", cure="give the folder that sf-edge run named")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise StoreError(f"{folder} holds the outboxes of {len(found)} bundles: {names}", cure="give one of them")
    return found[0]


def beginning_text(root: Path, folder: Path, bundle_id: str) -> str | None:
    """What to say when a new outbox begins beside earlier ones; None when there are none."""
    if has_outbox(folder) or not any(_outboxes(root)):
        return None
    return f"bundle {bundle_id[:12]} is another one than before: it begins a new outbox in {folder}, and takes the data anew"


def waiting_texts(root: Path, read_status: ReadStatus, *, besides: Path, device: str) -> list[str]:
    """One line for every outbox of another bundle that still holds samples of this device."""
    texts = []
    for folder in _outboxes(root):
        status = _status_or_none(folder, read_status) if folder != besides else None
        if status is not None and status.waiting_samples > 0 and status.owner.device == device:
            texts.append(
                f"{status.waiting_samples} samples of bundle {status.owner.bundle_id[:12]} still wait in {folder}: to deliver "
                "them, run again with that bundle and its server; to give them up, delete the folder"
            )
    return texts


def _outboxes(root: Path) -> Iterator[Path]:
    if has_outbox(root):
        yield root
    elif root.is_dir():
        yield from sorted(path for path in root.iterdir() if has_outbox(path))


def has_outbox(folder: Path) -> bool:
    """True when the folder itself is an outbox."""
    return (folder / DATABASE_FILE).is_file()


def _status_or_none(folder: Path, read_status: ReadStatus) -> OutboxStatus | None:
    """What an outbox holds; one that cannot be read is not this run's business."""
    try:
        return read_status(folder)
    except StoreError:
        return None
