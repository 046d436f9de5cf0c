"""`sf-bench overlap`: from the command line to a sweep and its plot."""

from __future__ import annotations

import shlex
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from sf_bench.overlap.settings import QUICK, OverlapSettings
from sf_bench.overlap.theory import WAYS
from sf_bench.studies.command import write_report
from sf_contract.command import ArgumentParser, let_idle_threads_sleep, print_json, say
from sf_contract.settings import resolve_settings
from sf_server.options import add_option

_METAVARS: Final = {"bundle": "DIR", "work": "DIR", "model": "M", "report": "FILE"}
_DESCRIPTION: Final = """\
Wall clock of a training: devices that compute once while the server trains, against devices and server that take turns."""


def _epilog() -> str:
    ways = "\n".join(f"  {way.name:10} {way.says}" for way in WAYS.values())
    return f"""ways:
{ways}

Real are the server's two processes, the model, the wire, the store and every step. What a device computes is emulated by
waiting: it waits for each sample as long as --ratios say, and sends made-up rows of the bundle's shape. First the server's
time for a sample is measured with devices that take none. At ratio 1 all devices together keep pace with the server; a single
one then needs for its share as long as the server for the whole epoch. Finished measurements are kept in --work: started
again, the command goes on. Use a machine that does nothing else.

examples:
  sf-bench overlap --bundle bundles/CUT4 --model MODEL --work work/overlap --report results/overlap
  sf-bench overlap --bundle bundles/CUT4 --model MODEL --work work/one --ratios 1 --repeats 3      the comparison alone
  sf-bench overlap --bundle bundles/CUT4 --model MODEL --work work/two --ways ours,cached,pipelined,at-once,in-turn
  sf-bench overlap --bundle bundles/CUT4 --model MODEL --work /tmp/try --quick"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    let_idle_threads_sleep()
    settings = read_settings(arguments)
    # ZeroMQ and matplotlib: not for --help
    from sf_bench.overlap.measure import measure_all, open_bench  # noqa: PLC0415
    from sf_bench.overlap.report import overlap_markdown, overlap_report  # noqa: PLC0415
    from sf_bench.quality.environment import describe_environment  # noqa: PLC0415

    bench = open_bench(settings)
    manifest = bench.bundle.manifest
    report = overlap_report(
        measure_all(bench, say=lambda text: say(f"sf-bench overlap: {text}")),
        base_model=manifest.base_model.name,
        split_layer=manifest.geometry.split_layer,
        environment=describe_environment(threads=settings.threads, jobs=1),
        command=shlex.join(["sf-bench", "overlap", *arguments]),
    )
    markdown = overlap_markdown(report)
    if settings.report is not None:
        from sf_bench.overlap.plot import draw  # noqa: PLC0415

        plot = Path(settings.report).with_suffix(".svg")
        write_report(Path(settings.report), report, overlap_markdown(report, plot=plot.name))
        draw(report, plot)
    if settings.json:
        print_json(msgspec.to_builtins(report))
    else:
        print(markdown, end="")
    return 0


def read_settings(arguments: Sequence[str]) -> OverlapSettings:
    """Settings from the command line; `--quick` replaces defaults, and nothing that is given.

    Raises:
        UsageError: they are unknown, out of range or missing.
    """
    given: dict[str, Any] = vars(_parser().parse_args(arguments))
    return resolve_settings(OverlapSettings, toml_path=None, flags={**(QUICK if given.get("quick") else {}), **given})


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-bench overlap", description=_DESCRIPTION, epilog=_epilog())
    hints = typing.get_type_hints(OverlapSettings, include_extras=True)
    plain = typing.get_type_hints(OverlapSettings)
    for field in msgspec.structs.fields(OverlapSettings):
        text = next(meta.description for meta in hints[field.name].__metadata__ if meta.description)
        if field.name == "ratios":
            parser.add_argument("--ratios", type=_numbers, metavar="X,X", help=f"{text} (0.25,0.5,1,2,4)")
        else:
            metavar = _METAVARS.get(field.name)
            add_option(parser, field, plain=plain[field.name], description=text, metavar=metavar)
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
