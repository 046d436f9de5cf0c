"""One process per outbox folder: a lock that the operating system releases however the process ends."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from sf_contract.errors import AlreadyRunning, DiskFull, StoreError

LOCK_FILE: Final = "lock"


class FolderLock:
    """Holds a folder for this process from `__enter__` to `__exit__`; the folder is made when missing.

    Raises:
        AlreadyRunning: another process holds it.
        StoreError: the folder cannot be made or written.
        DiskFull: there is no room for it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1

    def __enter__(self) -> FolderLock:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"no room left for the outbox in {self._folder}", cure="free some space and start again"
                ) from problem
            raise StoreError(
                f"{self._folder} cannot be used as an outbox: {problem.strerror}",
                cure="give --outbox a folder that this user may write",
            ) from problem
        self._lock()
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)

    @staticmethod
    def is_held(folder: Path) -> bool:
        """True while another process holds the folder; looks without making anything, and holds it for no longer than that."""
        try:
            descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(self._descriptor)
            raise AlreadyRunning(
                f"another sf-edge uses the outbox in {self._folder}",
                cure="wait for it, stop it, or give this one its own --device or --outbox",
            ) from problem
