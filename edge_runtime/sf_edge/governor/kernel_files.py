"""Reading the one-line files in which Linux tells a sensor's value, and saying why one cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ReadLine = Callable[[Path], str]
"""Reads such a file; raises OSError. A parameter, so that a test can deny permission."""


def read_line(path: Path) -> str:
    """The file's text without the white space around it.

    Raises:
        OSError: it is missing, or may not be read, or the driver behind it has no value now.
    """
    return path.read_text(encoding="utf-8", errors="replace").strip()


def line_or_none(path: Path, read: ReadLine = read_line) -> str | None:
    """The file's text; None where there is none to read."""
    try:
        return read(path)
    except OSError:
        return None


def number_or_none(path: Path, read: ReadLine = read_line) -> int | None:
    """The file's whole number; None where there is none to read."""
    try:
        return int(read(path))
    except (OSError, ValueError):
        return None


def why_unreadable(path: Path, read: ReadLine = read_line) -> str | None:
    """Why the file holds no number for this user; None where it does."""
    try:
        int(read(path))
    except PermissionError:
        return f"no permission to read {path}"
    except OSError as problem:
        return f"{path} cannot be read: {problem.strerror}"
    except ValueError:
        return f"{path} holds no number"
    return None
