"""Where the texts come from: a file, the files of a folder, or standard input."""

from __future__ import annotations

from sf_edge.sources.position import Source, SourcePosition, Taken

__all__ = ["Source", "SourcePosition", "Taken"]
