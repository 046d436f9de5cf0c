"""What was found out about bundles on this machine, kept in `~/.local/state/splitfrozen/tuning`.

Nothing here is needed: a file that is missing, damaged or from another machine only means that a default is used or that
something is measured again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from sf_contract.limits import MIB
from sf_contract.plain_files import read_plain
from sf_edge.bench.tuning import Contest, Tuning, contest_key

MAX_FILE_BYTES: Final = 1 * MIB
Say = Callable[[str], None]
T = TypeVar("T", Tuning, Contest)


def default_tuning_folder() -> Path:
    """In the user's state folder, beside the outboxes."""
    return Path.home() / ".local" / "state" / "splitfrozen" / "tuning"


def tuning_path(folder: Path, bundle_id: str) -> Path:
    """Of one bundle."""
    return folder / f"{bundle_id}.json"


def contest_path(folder: Path, bundle_ids: list[str]) -> Path:
    """Of the contest between these bundles."""
    return folder / f"contest-{contest_key(bundle_ids)[:32]}.json"


def read_tuning(path: Path, *, bundle_id: str, machine_digest: str, say: Say) -> Tuning | None:
    """What is known about the bundle on this very machine; None, with a line, where the file does not say that."""
    found = _read(path, Tuning, say)
    if found is None:
        return None
    if found.bundle_id != bundle_id:
        say(f"{path} is about another bundle and is ignored; sf-edge bench --tune writes it anew")
        return None
    if found.machine_digest != machine_digest:
        say(
            f"{path} is of another machine or version ({found.machine}, ONNX Runtime {found.onnxruntime}) and is ignored; "
            "sf-edge bench --tune measures again"
        )
        return None
    return found


def read_contest(path: Path, *, say: Say) -> Contest | None:
    """A former contest, of this machine or another; None, with a line when the file is damaged."""
    return _read(path, Contest, say)


def write_record(path: Path, record: Tuning | Contest) -> None:
    """Replace the file; a reader sees the old or the new one, never half of one.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _read(path: Path, kind: type[T], say: Say) -> T | None:
    try:
        raw = read_plain(path, max_bytes=MAX_FILE_BYTES)
        return None if raw is None else msgspec.json.decode(raw, type=kind)
    except FileNotFoundError:
        return None
    except OSError as problem:
        say(f"{path} cannot be read and is ignored: {problem.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        say(f"{path} is damaged and is ignored: {problem}")
    return None
