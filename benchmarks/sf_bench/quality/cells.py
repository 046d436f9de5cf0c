"""Finished cells on disk: one JSON file for each way of training and seed, computed once, by one process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from sf_contract.errors import AlreadyRunning, MismatchError, StoreError
from sf_server.run_folder import RunFolder, write_atomically


class Keyed(Protocol):
    """A result that knows everything that decided it."""

    @property
    def key(self) -> msgspec.Struct:
        """What decided the result."""
        ...


CellT = TypeVar("CellT", bound=Keyed)


def cell_path(work: Path, arm: str, seed: int) -> Path:
    """File of a finished cell."""
    return work / f"{arm}-seed{seed}.json"


def finish_cell(path: Path, key: msgspec.Struct, kind: type[CellT], compute: Callable[[RunFolder], CellT]) -> CellT:
    """The cell, computed unless it was before.

    Args:
        compute: given a folder of its own, which holds what an interrupted computation left in it, and which is removed
            at the end.

    Raises:
        MismatchError: the file or the folder belongs to other inputs or settings.
        AlreadyRunning: another process computes it.
        StoreError: the file is damaged.
    """
    found = read_cell(path, key, kind)
    if found is not None:
        return found
    folder = RunFolder(path.with_suffix(""))
    with _alone_in(folder):
        claim(folder, key)
        cell = compute(folder)
        write_atomically(path, msgspec.json.encode(cell))
    shutil.rmtree(folder.path)
    return cell


def read_cell(path: Path, key: msgspec.Struct, kind: type[CellT]) -> CellT | None:
    """A finished cell; None when there is none.

    Raises:
        MismatchError: it was computed from other inputs or settings.
        StoreError: the file is damaged.
    """
    try:
        cell = msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise StoreError(f"{path} is not a result: {problem}", cure="delete it; it is computed again") from problem
    _check_same(path, found=cell.key, wanted=key)
    return cell


def claim(folder: RunFolder, key: msgspec.Struct) -> None:
    """Write down what the half-finished cell belongs to, so that it is never finished as another one.

    Raises:
        MismatchError: it belongs to other inputs or settings.
    """
    path = folder.path / "key.json"
    if path.exists():
        _check_same(folder.path, found=msgspec.json.decode(path.read_bytes(), type=type(key)), wanted=key)
    else:
        write_atomically(path, msgspec.json.encode(key))


def _check_same(where: Path, *, found: msgspec.Struct, wanted: msgspec.Struct) -> None:
    differing = [name for name in wanted.__struct_fields__ if getattr(found, name) != getattr(wanted, name)]
    if differing:
        raise MismatchError(
            f"{where} was computed with other {', '.join(differing)}",
            cure="give another --work folder, or the options it was computed with",
        )


@contextmanager
def _alone_in(folder: RunFolder) -> Iterator[None]:
    try:
        with folder.lock():
            yield
    except AlreadyRunning as problem:
        raise AlreadyRunning(
            f"another sf-bench computes {folder.path.name}", cure="wait for it, or choose other arms and --seeds"
        ) from problem
