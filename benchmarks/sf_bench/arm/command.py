"""`sf-bench arm`: from the command line to a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sf_bench.arm.measure import Plan, check_targets, count_instructions, failed_self_tests
from sf_bench.arm.profiles import PROFILES, choose_profiles, described
from sf_bench.arm.report import as_json, as_table
from sf_bench.arm.toolkit import default_folder, open_toolkit
from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import SelfTestFailed, UsageError

_HELP = f"""The front end runs as an aarch64 process under QEMU, with the aarch64 wheels, on a processor that looks like
each profile's to ONNX Runtime. Its self-test shows whether the bundle's integer kernels are right there; the counted
instructions compare bundles with one another on the same profile. They are not time: processors differ in what an
instruction takes. A count takes a minute or so. Run sf-bench arm-setup once before.

Classes of instructions: dot8 = SDOT and kin, mmla8 = SMMLA and kin (int8 products), multiply_wide = widening integer
multiplications, fma = floating-point multiply-adds, other = the rest. An ONNX file with inputs of fixed shape is counted
too; with --tokens 1 its figures are per run.

profiles:
{described(tuple(PROFILES.values()))}

examples:
  sf-bench arm out/bundle
  sf-bench arm out/bundle --baseline out/bundle-fp32 --profile pi4,pi5 --tokens 64
  sf-bench arm front_end.onnx --profile pi5 --json"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code.

    Raises:
        SelfTestFailed: after the table, when a bundle fails on a profile.
    """
    given = _parser().parse_args(arguments)
    if min(given.tokens, given.repeats) < 1:
        raise UsageError("--tokens and --repeats must be 1 or more", cure="leave them out for the defaults")
    baseline: Path | None = given.baseline
    targets = dict.fromkeys([*([] if baseline is None else [baseline]), *given.targets])
    plan = Plan(
        targets=tuple(targets), profiles=choose_profiles(given.profile), tokens=given.tokens, repeats=given.repeats
    )
    ids = check_targets(plan)
    results = count_instructions(plan, open_toolkit(given.toolkit), ids=ids, say=say)
    shown = None if baseline is None else str(baseline)
    if given.json:
        print_json(as_json(results, baseline=shown))
    else:
        print(as_table(results, baseline=shown))
    if failed := failed_self_tests(results):
        raise SelfTestFailed(
            f"{failed[0].target} fails its self-test on EMULATED {failed[0].profile}",
            cure="export it for that kind of processor, with --target, or with --quantize none",
        )
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sf-bench arm",
        description="EMULATED ARM: count a front end's instructions per token and run its self-test.",
        epilog=_HELP,
    )
    add = parser.add_argument
    add("targets", type=Path, nargs="+", metavar="BUNDLE_OR_GRAPH", help="bundle folder, or ONNX file of a front end")
    add("--baseline", type=Path, default=None, metavar="BUNDLE_OR_GRAPH", help="counted too, for the ratio: often fp32")
    add("--profile", default=",".join(PROFILES), metavar="NAME,NAME", help="processors (default: all)")
    add("--tokens", type=int, default=64, metavar="N", help="length of the one sequence (default: 64)")
    add("--repeats", type=int, default=3, metavar="N", help="counted runs, after one to warm up (default: 3)")
    add("--toolkit", type=Path, default=default_folder(), metavar="DIR", help="what sf-bench arm-setup made")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    return parser
