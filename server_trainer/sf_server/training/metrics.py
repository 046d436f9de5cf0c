"""The metrics log: one JSON object per line, readable while training writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Self


class MetricsLog:
    """Appends to `metrics.jsonl`.

    Args:
        path: the file.
        after_step: lines of later steps are dropped first: they belong to work that was lost and is done again.
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        kept = [line for line in _lines(path) if _step_of(line) <= after_step]
        scratch = path.with_name(path.name + ".tmp")
        scratch.write_text("".join(kept), encoding="utf-8")
        scratch.replace(path)
        self._stream = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def write(self, entry: Mapping[str, object]) -> None:
        """Append one entry; it is visible to readers at once."""
        self._stream.write(json.dumps(entry, sort_keys=True) + "\n")
        self._stream.flush()


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _step_of(line: str) -> int:
    return int(json.loads(line)["step"])
