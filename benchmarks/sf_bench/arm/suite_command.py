"""`sf-bench arm-tests`: the device's tests on an emulated processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sf_bench.arm.build import make_toolkit
from sf_bench.arm.debian import DownloadFailed
from sf_bench.arm.profiles import PROFILES, choose_profiles, described
from sf_bench.arm.suite import PATHS, run_suite
from sf_bench.arm.toolkit import ToolMissing, default_folder
from sf_contract.command import ArgumentParser, say

_HELP = f"""Runs the tests of sf-edge and of what it shares with the server in which the machine can make a difference,
without the slow ones, as an aarch64 process under QEMU with the aarch64 wheels; processes that a test starts are emulated
too. Makes or updates what sf-bench arm-setup makes, if needed.

profiles:
{described(tuple(PROFILES.values()))}

examples:
  sf-bench arm-tests
  sf-bench arm-tests -- tests/edge_runtime tests/contract
  sf-bench arm-tests --profile pi5 -- tests/edge_runtime/test_edge_outbox.py -x"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code.

    Raises:
        ToolMissing, DownloadFailed: there is nothing to emulate with, unless that may be skipped.
    """
    parser = ArgumentParser(
        prog="sf-bench arm-tests", description="EMULATED ARM: run the device's tests.", epilog=_HELP
    )
    add = parser.add_argument
    add(
        "chosen",
        nargs="*",
        default=[],
        metavar="PYTEST_ARGUMENT",
        help=f"after -- (default: {len(PATHS)} files of tests)",
    )
    add("--profile", default="pi4", metavar="NAME", help="processor (default: pi4)")
    add("--root", type=Path, default=Path(), metavar="DIR", help="the checkout (default: this folder)")
    add("--toolkit", type=Path, default=default_folder(), metavar="DIR", help="what sf-bench arm-setup makes")
    add(
        "--skip-if-missing", action="store_true", default=False, help="say so and succeed where emulation is impossible"
    )
    given = parser.parse_args(arguments)
    (profile,) = choose_profiles(given.profile)
    try:
        toolkit = make_toolkit(given.toolkit, say=say, rebuild=False, prove_with=(profile,))
    except (ToolMissing, DownloadFailed) as problem:
        if not given.skip_if_missing:
            raise
        say(f"SKIPPED, nothing was tested on emulated ARM: {problem.one_line()}")
        return 0
    return run_suite(toolkit, profile, root=given.root, chosen=given.chosen, say=say)
