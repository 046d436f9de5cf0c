"""`sf-bench arm-kernels`: from the command line to a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from sf_bench.arm.kernels import cost_table, count_kernels
from sf_bench.arm.profiles import PROFILES, choose_profiles, described
from sf_bench.arm.toolkit import default_folder, open_toolkit
from sf_bench.kernels_command import SMOLLM2, parse_shapes
from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import UsageError

_HELP = f"""Each kernel is a graph of one node, run by the aarch64 wheel of ONNX Runtime under QEMU. A cell is instructions
per multiply-add, and how many times fewer than fp32 MatMul of the same shape; the last column is all products of a
layer together. Instructions are not time. Some minutes per profile. Run sf-bench arm-setup once before.

profiles:
{described(tuple(PROFILES.values()))}

examples:
  sf-bench arm-kernels --profile pi4,pi5
  sf-bench arm-kernels --profile pi5 --shapes 768x2304,768x768,768x3072,3072x768 --rows 16 --json"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    parser = ArgumentParser(
        prog="sf-bench arm-kernels",
        description="EMULATED ARM: count the instructions of ONNX Runtime's matrix products.",
        epilog=_HELP,
    )
    add = parser.add_argument
    add("--profile", default="pi4,pi5,i8mm", metavar="NAME,NAME", help="processors (default: pi4,pi5,i8mm)")
    add(
        "--shapes",
        type=parse_shapes,
        default=SMOLLM2,
        metavar="KxN,KxN",
        help="weights of a layer, KxN*C where it has C of them (default: SmolLM2-135M's)",
    )
    add("--rows", type=int, default=64, metavar="N", help="tokens (default: 64)")
    add("--toolkit", type=Path, default=default_folder(), metavar="DIR", help="what sf-bench arm-setup made")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    given = parser.parse_args(arguments)
    if given.rows < 1:
        raise UsageError(f"--rows {given.rows} counts nothing", cure="give 1 or more")
    profiles = choose_profiles(given.profile)
    costs = count_kernels(given.shapes, profiles, open_toolkit(given.toolkit), rows=given.rows, say=say)
    if given.json:
        print_json({"emulated": True, "kernels": msgspec.to_builtins(costs)})
    else:
        print(cost_table(costs))
    return 0
