"""Opening a file that somebody else may have put there: only a plain file, never a pipe, a device or, unless asked, a link."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotAPlainFile(OSError):
    """What stands at the path is a link, a folder, a pipe, a socket or a device."""


def open_plain(path: Path, *, follow_links: bool = False) -> BinaryIO:
    """Open for reading, without ever waiting for another process.

    What is opened is looked at again after opening, so an exchange in between is noticed. Only the last part of the
    path is held against `follow_links`.

    Raises:
        NotAPlainFile: it is anything else than a plain file.
        OSError: it is missing, or cannot be read.
    """
    before = path.stat() if follow_links else path.lstat()
    _check_plain(before, path)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        _check_plain(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def read_plain(path: Path, *, max_bytes: int, follow_links: bool = False) -> bytes | None:
    """The whole file, or None when it is larger than `max_bytes`; no more than that is ever read.

    Raises:
        NotAPlainFile: it is anything else than a plain file.
        OSError: it is missing, or cannot be read.
    """
    with open_plain(path, follow_links=follow_links) as stream:
        content = stream.read(max_bytes + 1)
    return content if len(content) <= max_bytes else None


def _check_plain(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotAPlainFile(errno.EINVAL, "not a plain file", str(path))
