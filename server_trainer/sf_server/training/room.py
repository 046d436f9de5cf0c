"""Telling a full disk from other failures."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from sf_contract.errors import DiskFull

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full disk, a quota, a limit on the size of files."""

RETRY_S: Final = 30.0
"""Seconds until what found no room is tried again."""

_SYSTEM_ERROR: Final = re.compile(r"\(os error (\d+)\)")


@contextmanager
def full_disk_by_name(path: Path) -> Iterator[None]:
    """Tell that a file could not be written for want of space, whichever library wrote it.

    Raises:
        DiskFull: it could not.
    """
    try:
        yield
    except (OSError, SafetensorError) as problem:
        if not is_no_room(problem):
            raise
        raise DiskFull(
            f"there is no room for {path}; the last checkpoint holds the same weights",
            cure="free some space and start again with --resume",
        ) from problem


def is_no_room(problem: BaseException) -> bool:
    """True when something could not be written for want of space."""
    if isinstance(problem, DiskFull):
        return True
    if isinstance(problem, OSError):
        return problem.errno in NO_ROOM
    # safetensors tells the system's number in words only.
    told = _SYSTEM_ERROR.search(str(problem)) if isinstance(problem, SafetensorError) else None
    return told is not None and int(told[1]) in NO_ROOM
