"""`sf-bench ingest`: from the command line to what the receiving side can take in."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.front_end_command import whole_numbers
from sf_bench.ingest.measure import measure
from sf_bench.ingest.report import markdown_of
from sf_bench.ingest.results import Report
from sf_bench.ingest.samples import SampleShape
from sf_bench.ingest.settings import IngestSettings
from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import UsageError

_LINKS: Final = {"clear": (False,), "encrypted": (True,), "both": (False, True)}
_USUAL: Final = IngestSettings()
_HELP = """First the disk alone: groups appended to a file and synced, the same as SQLite commits, the same through the server's
store. Then the real ingest process, once for each crowd: simulated devices, all in this process, with the real session of
sf-edge and made-up int8 samples of HIDDENxTOKENS, everyone sending as much as it may. Then modest devices, each making
some samples per second, alone and beside one that has no end of them.

Durable is what the store holds and the device knows of. x disk: against 1 MiB groups appended and synced just before and
just after. A share is what a device got over what the mean one got, in a window after the warm-up. Devices and ingest
share this machine's cores; the table shows what each took. 500 devices need 1,100 open files (ulimit -n). Linux only.

examples:
  sf-bench ingest --folder /srv/splitfrozen
  sf-bench ingest --devices 1,500 --shape 2048x128 --link encrypted --seconds 60 --json
  sf-bench ingest --devices 64 --shape 576x25 --link clear --no-greedy --profile"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    given = _parser().parse_args(arguments)
    report = measure(_settings(given), say=say)
    table = markdown_of(report)
    if given.markdown is not None:
        given.markdown.write_text(table, encoding="utf-8")
    if given.json:
        print_json(as_json(report))
    else:
        print(table, end="")
    return 0


def as_json(report: Report) -> dict[str, object]:
    """The report, with what the table derives from it."""
    document: dict[str, object] = msgspec.to_builtins(report)
    document["derived"] = [
        {
            "durable_mb_per_s": crowd.load.mb_per_s,
            "of_disk": crowd.of_disk,
            "ingest_cpu_s_per_gb": crowd.load.cpu_s_per_gb,
        }
        for crowd in report.crowds
    ]
    return document


def parse_shapes(text: str) -> tuple[SampleShape, ...]:
    """`576x25,2048x128`, for argparse."""
    pairs = [part.split("x") for part in text.split(",")]
    shapes = tuple(SampleShape(hidden=int(hidden), tokens=int(tokens)) for hidden, tokens in pairs)
    if min(min(shape.hidden, shape.tokens) for shape in shapes) < 1:
        raise ValueError
    return shapes


def _settings(given: Namespace) -> IngestSettings:
    fields = {
        "folder": given.folder,
        "devices": given.devices,
        "shapes": given.shape,
        "encrypted": _LINKS[given.link],
        "seconds": given.seconds,
        "warm_up_s": given.warm_up_s,
        "in_flight_bytes": given.in_flight_bytes,
        "disk_s": given.disk_s,
        "modest_samples_per_s": given.modest_samples_per_s,
        "is_greedy_tried": given.greedy,
        "is_profiled": given.profile,
    }
    try:
        settings = msgspec.convert(fields, IngestSettings)
    except msgspec.ValidationError as problem:
        raise UsageError(f"nothing is measured with these numbers: {problem}", cure="leave them out") from None
    if not settings.folder.is_dir():
        raise UsageError(f"--folder {settings.folder} is no folder", cure="give one on the disk to be measured")
    return settings


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sf-bench ingest", description="Measure the server's receiving side with simulated devices.", epilog=_HELP
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path(), metavar="DIR", help="on the disk to be measured (default: here)")
    add("--devices", type=whole_numbers, default=_USUAL.devices, metavar="N,N", help="crowds (default: 1,8,64,500)")
    add(
        "--shape",
        type=parse_shapes,
        default=_USUAL.shapes,
        metavar="HxT,HxT",
        help="hidden size x tokens of a sample (default: 576x25,2048x128)",
    )
    add("--link", choices=list(_LINKS), default="both", help="of the crowds; the neighbours' is encrypted unless clear")
    add("--seconds", type=float, default=_USUAL.seconds, metavar="S", help="each measurement (default: 20)")
    add("--warm-up-s", type=float, default=_USUAL.warm_up_s, metavar="S", help="before each (default: 5)")
    add("--disk-s", type=float, default=_USUAL.disk_s, metavar="S", help="each measurement of the disk (default: 2)")
    add(
        "--in-flight-bytes",
        type=int,
        default=_USUAL.in_flight_bytes,
        metavar="N",
        help="payload that a device of a crowd has under way, at most the server's credit (default: 600000)",
    )
    add(
        "--modest-samples-per-s",
        type=float,
        default=_USUAL.modest_samples_per_s,
        metavar="N",
        help="of a modest device (default: 1)",
    )
    add("--no-greedy", dest="greedy", action="store_false", default=True, help="leave out modest and greedy devices")
    add("--profile", action="store_true", default=False, help="also run ingest under cProfile")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    add("--markdown", type=Path, default=None, metavar="FILE", help="write the tables there too")
    return parser
