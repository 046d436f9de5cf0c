"""One process per outbox folder: a lock that the operating system releases however the process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from sf_contract.errors import AlreadyRunning, StoreError

LOCK_FILE: Final = "lock"


class FolderLock:
    """Holds a folder for this process from `__enter__` to `__exit__`; the folder is made when missing.

    Raises:
        AlreadyRunning: another process holds it.
        StoreError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1

    def __enter__(self) -> FolderLock:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise StoreError(
                f"{self._folder} cannot be used as an outbox: {problem.strerror}", cure="give --outbox another folder"
            ) from problem
        self._lock()
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(self._descriptor)
            raise AlreadyRunning(
                f"another sf-edge uses the outbox in {self._folder}",
                cure="wait for it, stop it, or give this one its own --device or --outbox",
            ) from problem
