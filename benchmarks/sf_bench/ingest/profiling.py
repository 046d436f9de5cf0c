"""Where the ingest process spends its time, from a file that cProfile wrote."""

from __future__ import annotations

import pstats
from pathlib import Path
from typing import Final, cast

from sf_bench.ingest.results import Profile

_Function = tuple[str, int, str]
_Times = tuple[int, int, float, float]
_Entry = tuple[int, int, float, float, dict[_Function, _Times]]

_GROUP: Final = ("ingest.py", "process")


def profile_of(file: Path, *, devices: int, samples: int) -> Profile:
    """Seconds that functions took by themselves. A built-in is named with the function that calls it."""
    loaded = pstats.Stats(str(file))
    # The type stubs know nothing of this attribute, which is what the pstats module itself works on.
    entries = cast("dict[_Function, _Entry]", vars(loaded)["stats"])
    own_s: dict[str, float] = {}
    for function, (_, _, own, _, callers) in entries.items():
        if function[0] != "~":
            own_s[_name(function)] = own_s.get(_name(function), 0.0) + own
            continue
        for caller, (_, _, part, _) in callers.items():
            name = f"{function[2]} in {_name(caller)}"
            own_s[name] = own_s.get(name, 0.0) + part
    groups = sum(entry[1] for function, entry in entries.items() if (Path(function[0]).name, function[2]) == _GROUP)
    return Profile(
        devices=devices,
        samples=samples,
        wall_s=sum(own_s.values()),
        groups=groups,
        own_s=dict(sorted(own_s.items(), key=lambda item: -item[1])),
    )


def _name(function: _Function) -> str:
    return f"{Path(function[0]).name}:{function[2]}" if function[0] != "~" else function[2]
