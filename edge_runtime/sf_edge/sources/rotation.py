"""Which file is which when names change: log rotation told from a file that was written anew. Pure decisions.

Rotation gives the taken content a longer name (`app.jsonl` becomes `app.jsonl.1` or `app.jsonl-20261124`, by renaming or by
copying) and begins the old name again. It is believed only when the content taken before is found, byte by byte, under
such a name: then its rest is taken there, and the old name is a new source. A taken content that is found nowhere while its
name holds another one is an error: whether it was corrected, truncated or replaced cannot be told, and taking the file
again would send its samples twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from sf_edge.sources.position import SourcePosition

_ROTATED: Final = re.compile(r"(?P<base>.+?)[.-][0-9][0-9._-]*\Z")

Holds = Callable[[str, SourcePosition], bool]


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What happened to the known sources.

    Attributes:
        moves: earlier name to the name that holds its content now.
        changed: names that hold another content than was taken, which is nowhere else.
    """

    moves: dict[str, str]
    changed: list[str]


def rotated_base(name: str) -> str:
    """The name a rotated file had before; any other name as it is."""
    match = _ROTATED.match(name)
    return name if match is None else match["base"]


def reconcile(known: Mapping[str, SourcePosition], names: Collection[str], holds: Holds) -> Reconciled:
    """Match known sources with the files there are.

    Args:
        known: positions by name.
        names: the files there are.
        holds: does this file begin with what was taken up to this position?
    """
    intact = {name for name, position in known.items() if name in names and holds(name, position)}
    free = [name for name in sorted(names) if name not in intact and rotated_base(name) != name]
    moves: dict[str, str] = {}
    changed: list[str] = []
    for name in sorted(known.keys() - intact):
        position = known[name]
        found = next((other for other in free if _may_be(other, name, known) and holds(other, position)), None)
        if found is not None and position.nbytes > 0:
            free.remove(found)
            moves[name] = found
        elif name in names:
            changed.append(name)
    return Reconciled(moves=moves, changed=changed)


def _may_be(rotated: str, earlier: str, known: Collection[str]) -> bool:
    """Can a name be what rotation made of an earlier one? Only in a family whose first name was taken too: numbered files
    that come and go are no rotated ones."""
    base = rotated_base(rotated)
    return rotated != earlier and base == rotated_base(earlier) and base in known
