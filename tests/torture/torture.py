"""Torture: real devices and a real server, with faults drawn from a seed, and the proof afterwards that nothing was lost.

PYTHONPATH=tests python -m torture.torture --faults 1000 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from sf_bench.link_script import Kind
from sf_contract.limits import MIB
from torture.checks import deliver_the_rest, problems_in_the_end
from torture.faults import draw_plan
from torture.lanes import Record, torture
from torture.wide_bundle import write_wide_bundle
from torture.world import TortureFailed, World

DEVICES: Final = 4


@dataclass(frozen=True)
class Outcome:
    """What torture found."""

    line: str
    recoveries: str
    problems: tuple[str, ...]


def run_torture(folder: Path, *, seed: int, faults: int) -> Outcome:
    """Torture a new world in a folder.

    Raises:
        TortureFailed: a process ended by itself, or nothing went on after a fault.
    """
    return asyncio.run(_run(folder, seed=seed, faults=faults))


async def _run(folder: Path, *, seed: int, faults: int) -> Outcome:
    started_s = time.monotonic()
    world = World(folder, write_wide_bundle(folder / "bundle"), seed=seed, devices=DEVICES)
    record = Record()
    plan = draw_plan(seed, faults=faults, devices=DEVICES, link_kinds=tuple(Kind))
    try:
        await world.begin()
        await torture(world, plan, record)
        await deliver_the_rest(world)
        problems = problems_in_the_end(world)
    except TortureFailed as problem:
        problems = [str(problem)]
    finally:
        await world.end()
    line = _line(world, record, seed=seed, lasted_s=time.monotonic() - started_s)
    return Outcome(line=line, recoveries=_recoveries(record), problems=tuple(problems))


def _line(world: World, record: Record, *, seed: int, lasted_s: float) -> str:
    most = {
        name: max(needs.most_bytes for child in children for needs in child.needs) / MIB
        for name, children in (("ingest", [world.ingest]), ("edge", [device.child for device in world.devices]))
    }
    starts = world.ingest.starts + sum(device.child.starts for device in world.devices)
    return (
        f"torture, seed {seed}: {record.faults} faults in {lasted_s:.0f} s, {sum(world.stored.values())} samples of "
        f"{len(world.devices)} devices, {starts} processes started, at most {most['ingest']:.0f} MiB for ingest and "
        f"{most['edge']:.0f} MiB for an edge; again: make torture SEED={seed} FAULTS={record.faults}"
    )


def _recoveries(record: Record) -> str:
    lines = [
        f"  {kind:20} {len(times_s):4} times, next sample stored after {median(times_s):5.2f} s (median), "
        f"{max(times_s):5.2f} s (longest)"
        for kind, times_s in sorted(record.recoveries_s.items())
    ]
    return "\n".join(lines)


def main() -> int:
    """Torture as asked for; 1 when something was wrong."""
    parser = argparse.ArgumentParser(description="Torture real devices and a real server.")
    parser.add_argument("--seed", type=int, default=1, help="draws the faults and the data")
    parser.add_argument("--faults", type=int, default=1000, help="how many")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        outcome = run_torture(Path(folder), seed=options.seed, faults=options.faults)
    print("\n".join((outcome.recoveries, *outcome.problems, outcome.line)))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
