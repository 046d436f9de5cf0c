"""`sf-bench soak`: from the command line to a table of slopes, and an exit code that says whether all are flat."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.soak.flatness import Flatness
from sf_bench.soak.soak import SoakReport, SoakSettings, soak
from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import UsageError
from sf_contract.limits import MIB

EXIT_GREW: Final = 1
_USUAL: Final = SoakSettings()
_HELP = """The real sf-server train with a tiny random model, and simulated devices with the real session of sf-edge, whose
samples are of unlike lengths. The store is filled first, so that SQLite's page cache is full. Then the devices keep
sending, the trainer trains on what arrives, and both processes are looked at: resident memory and open files.

The slope is Theil and Sen's with its 95 % interval. Something grew when the lower end of the interval makes more of the
watched time than 2 % of the median (and 4 MiB, or 2 files); then the exit code is 1. Linux only.

examples:
  sf-bench soak
  sf-bench soak --minutes 1 --warm-up-s 15 --json
  sf-bench soak --minutes 600 --devices 100 --samples-per-s 200 --keep /srv/soak"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    given = _parser().parse_args(arguments)
    report = soak(_settings(given), keep=given.keep, say=say)
    if given.json:
        print_json({**msgspec.to_builtins(report), "is_flat": report.is_flat})
    else:
        print(table_of(report), end="")
    return 0 if report.is_flat else EXIT_GREW


def table_of(report: SoakReport) -> str:
    """The report as Markdown."""
    head = (
        f"{report.watched_s:.0f} s watched: {report.samples} samples confirmed, {report.steps} training steps; "
        f"{report.stored} samples in the store\n\n"
        "| process, quantity | median | first tenth | last tenth | slope per hour (95 %) | certain growth | allowed | |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(map(_row, report.found))


def _row(one: Flatness) -> str:
    slope = one.per_hour
    cells = [
        one.name,
        *(_shown(one, value) for value in (one.median, one.first, one.last)),
        f"{_shown(one, slope.estimate)} ({_shown(one, slope.low)} to {_shown(one, slope.high)})",
        _shown(one, one.growth),
        _shown(one, one.allowed),
        "flat" if one.is_flat else "GREW",
    ]
    return f"| {' | '.join(cells)} |\n"


def _shown(one: Flatness, value: float) -> str:
    return f"{value / MIB:.2f} MiB" if one.unit == "bytes" else f"{value:.1f}"


def _settings(given: Namespace) -> SoakSettings:
    fields = {name: getattr(given, name) for name in SoakSettings.__struct_fields__ if hasattr(given, name)}
    try:
        return msgspec.convert(fields, SoakSettings)
    except msgspec.ValidationError as problem:
        raise UsageError(f"nothing is soaked with these numbers: {problem}", cure="leave them out") from None


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sf-bench soak", description="Watch memory and open files of a server that works on.", epilog=_HELP
    )
    add = parser.add_argument
    add("--minutes", type=float, metavar="M", help=f"that the server is watched (default: {_USUAL.minutes:g})")
    add("--warm-up-s", type=float, metavar="S", help=f"before that (default: {_USUAL.warm_up_s:g})")
    add("--devices", type=int, metavar="N", help=f"that keep sending (default: {_USUAL.devices})")
    add("--samples-per-s", type=float, metavar="N", help=f"of all of them (default: {_USUAL.samples_per_s:g})")
    add("--fill-bytes", type=int, metavar="N", help=f"payload sent first (default: {_USUAL.fill_bytes})")
    add("--keep", type=Path, default=None, metavar="DIR", help="keep run folder and log there")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    return parser
