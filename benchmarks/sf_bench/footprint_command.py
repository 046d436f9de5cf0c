"""`sf-bench footprint`: from the command line to what a waiting device costs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sf_bench.footprint import Footprint, Plan, measure
from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import UsageError

_HELP = """Starts sf-edge run --watch against an ingest process on this machine, several times; then watches the last one while
it has nothing to do, and while rows are appended to its file. Linux only. Times are wall-clock, processor time is of the
device process alone; on a machine that others use too, starts are slower than they would be, processor time hardly.

examples:
  sf-bench footprint out/bundle --data private.jsonl
  sf-bench footprint out/bundle --data private.jsonl --python /opt/splitfrozen/bin/python --json
  sf-bench footprint out/bundle --data private.jsonl --option=--no-governor"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    given = _parser().parse_args(arguments)
    if given.starts < 1 or min(given.idle_s, given.busy_s, given.rows_per_s) <= 0:
        raise UsageError("nothing is measured with these numbers", cure="leave them out for the defaults")
    plan = Plan(
        bundle=given.bundle,
        data=given.data,
        python=given.python,
        starts=given.starts,
        idle_s=given.idle_s,
        busy_s=given.busy_s,
        rows_per_s=given.rows_per_s,
        options=tuple(given.option),
    )
    found = measure(plan, say=say)
    if given.json:
        print_json({**msgspec.to_builtins(found), "rss_above_weights_mb": found.rss_above_weights_mb})
    else:
        print(as_table(found))
    return 0


def as_table(found: Footprint) -> str:
    """For reading."""
    packages = ", ".join(f"{name} {mb:.1f}" for name, mb in found.packages.items())
    return "\n".join(
        (
            f"packages           {len(found.packages)}, {sum(found.packages.values()):.1f} MB: {packages}",
            f"start to first row {found.start_s:.2f} s (median of {len(found.starts_s)})",
            f"idle memory        {found.memory.rss_mb:.1f} MB resident, {found.memory.anonymous_mb:.1f} MB of it its own; "
            f"{found.rss_above_weights_mb:.1f} MB above the graph's {found.graph_mb:.1f}; peak {found.peak_rss_mb:.1f} MB",
            f"idle processor     {found.idle_cpu_percent:.2f} % of a core, {found.threads} threads",
            f"at {found.busy_rows_per_s:.1f} rows/s      {found.busy_cpu_percent:.1f} % of a core",
        )
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-bench footprint", description="Measure what a waiting device costs.", epilog=_HELP)
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="bundle folder")
    add("--data", type=Path, required=True, metavar="FILE", help="rows in the form that the bundle needs")
    add(
        "--python",
        type=Path,
        default=Path(sys.executable),
        metavar="FILE",
        help="Python of the device's environment (default: this one)",
    )
    add("--starts", type=int, default=5, metavar="N", help="how often it is started (default: 5)")
    add("--idle-s", type=float, default=60.0, metavar="S", help="how long it is watched at rest (default: 60)")
    add("--busy-s", type=float, default=30.0, metavar="S", help="how long it is watched at work (default: 30)")
    add("--rows-per-s", type=float, default=10.0, metavar="N", help="rows appended per second then (default: 10)")
    add("--option", action="append", default=[], metavar="OPTION", help="a further option of sf-edge run; repeatable")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    return parser
