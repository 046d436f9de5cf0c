"""Telling a full disk from other failures."""

from __future__ import annotations

import errno
import re
from typing import Final

from safetensors import SafetensorError

from sf_contract.errors import DiskFull

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""A full disk, a quota, a limit on the size of files."""

RETRY_S: Final = 30.0
"""Seconds until what found no room is tried again."""

_SYSTEM_ERROR: Final = re.compile(r"\(os error (\d+)\)")


def is_no_room(problem: BaseException) -> bool:
    """True when something could not be written for want of space."""
    if isinstance(problem, DiskFull):
        return True
    if isinstance(problem, OSError):
        return problem.errno in NO_ROOM
    # safetensors tells the system's number in words only.
    told = _SYSTEM_ERROR.search(str(problem)) if isinstance(problem, SafetensorError) else None
    return told is not None and int(told[1]) in NO_ROOM
