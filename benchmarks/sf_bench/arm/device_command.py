"""`sf-bench arm-device`: from the command line to a comparison of devices."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sf_bench.arm.device import DeviceResult, compare_devices
from sf_bench.arm.profiles import PROFILES, choose_profiles, described
from sf_bench.arm.toolkit import default_folder, open_toolkit
from sf_contract.command import ArgumentParser, print_json, say

_HELP = f"""Starts the server's ingest on this machine, sends the data file once from a native sf-edge and once from an sf-edge
that runs as an aarch64 process under QEMU, and compares what the server stored: token ids, order, roles, labels and target
ids exactly, rows within the error that the bundle's self-test allows. Nothing is trained. Run sf-bench arm-setup once before.

profiles:
{described(tuple(PROFILES.values()))}

examples:
  sf-bench arm-device out/bundle --data private.jsonl
  sf-bench arm-device out/bundle --data private.jsonl --profile pi4,pi5 --json"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    given = _parser().parse_args(arguments)
    profiles = choose_profiles(given.profile)
    toolkit = open_toolkit(given.toolkit)
    with tempfile.TemporaryDirectory() as work:
        results = compare_devices(
            given.bundle, given.data, profiles=profiles, toolkit=toolkit, work=Path(work), say=say
        )
    if given.json:
        print_json({"emulated": True, "results": msgspec.to_builtins(results)})
    else:
        print("\n".join(map(_line, results)))
    return 0


def _line(result: DeviceResult) -> str:
    return (
        f"EMULATED {result.profile}: {result.samples} samples, {result.tokens} tokens; "
        "ids, order, roles and labels as in the native run; "
        f"rows {result.mean_error:.2%} from the native ones (worst sample {result.worst_sample:.2%}, "
        f"allowed on average {result.limit:.2%})"
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sf-bench arm-device",
        description="EMULATED ARM: a whole sf-edge run against this machine's server, beside a native one.",
        epilog=_HELP,
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="bundle folder")
    add("--data", type=Path, required=True, metavar="FILE", help="data file for sf-edge run")
    add("--profile", default="pi4,pi5", metavar="NAME,NAME", help="processors (default: pi4,pi5)")
    add("--toolkit", type=Path, default=default_folder(), metavar="DIR", help="what sf-bench arm-setup made")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    return parser
