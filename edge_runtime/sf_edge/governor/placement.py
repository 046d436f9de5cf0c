"""Where and how importantly this process runs: its processors and its priority."""

from __future__ import annotations

import os
import re

from sf_contract.errors import UsageError

_MOST_CPUS = 4096
_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?\Z")


def parse_cpus(text: str) -> frozenset[int]:
    """Processor numbers from a list like `0-1,3`.

    Raises:
        UsageError: it is no such list.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = _RANGE.match(part.strip())
        first, last = (0, -1) if match is None else (int(match[1]), int(match[2] or match[1]))
        if first > last or last >= _MOST_CPUS:
            raise UsageError(
                f"--cpus {text!r} is no list of processors", cure="write numbers and ranges, as in 0-1 or 0,2,3"
            )
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def place_process(*, nice: int, cpus: frozenset[int] | None) -> None:
    """Give way to others and keep to some processors; to be called before threads are started, which inherit both.

    A process that is already nicer stays so.

    Raises:
        UsageError: none of the processors can be used, or this system cannot pin processes.
    """
    lacking = nice - os.getpriority(os.PRIO_PROCESS, 0)
    if lacking > 0:
        os.nice(lacking)
    if cpus is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("--cpus cannot be kept on this system", cure="leave it out")
    usable = os.sched_getaffinity(0)
    if not cpus <= usable:
        raise UsageError(
            f"--cpus asks for processors that this process may not use: {_listed(cpus - usable)}",
            cure=f"choose among {_listed(usable)}",
        )
    os.sched_setaffinity(0, cpus)


def _listed(cpus: frozenset[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(cpus)))
