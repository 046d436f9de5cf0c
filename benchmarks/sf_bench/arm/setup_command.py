"""`sf-bench arm-setup`: from the command line to a toolkit folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sf_bench.arm.build import make_toolkit
from sf_bench.arm.profiles import PROFILES
from sf_bench.arm.toolkit import default_folder
from sf_contract.command import ArgumentParser, print_json, say

_HELP = """Makes a folder with a small aarch64 Debian (Python only), the aarch64 wheels that sf-edge and its tests need in the
versions installed here, and the plugin that counts instructions; then starts every profile once to prove it. A few
minutes, about 290 MB on disk. Nothing is installed on the system: packages come through the apt and
pip that are configured here, with lists and caches of their own. A folder that is up to date is only proven again.

Needs Debian 12 with: apt-get install qemu-user gcc

examples:
  sf-bench arm-setup
  sf-bench arm-setup --into /data/arm --rebuild"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    parser = ArgumentParser(
        prog="sf-bench arm-setup", description="Prepare EMULATED ARM processors for sf-bench arm.", epilog=_HELP
    )
    add = parser.add_argument
    add(
        "--into",
        type=Path,
        default=default_folder(),
        metavar="DIR",
        help="default: splitfrozen/arm in the user's cache",
    )
    add("--rebuild", action="store_true", default=False, help="make it again even if it is up to date")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    given = parser.parse_args(arguments)
    toolkit = make_toolkit(given.into, say=say, rebuild=given.rebuild)
    if given.json:
        print_json({"emulated": True, "toolkit": str(toolkit.folder), "profiles": list(PROFILES)})
    else:
        print(f"{toolkit.folder} is ready: EMULATED {', '.join(PROFILES)}")
    return 0
