"""The command `sf-bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from sf_contract import SOFTWARE
from sf_contract.command import ArgumentParser, print_json, run_command, say
from sf_contract.errors import UsageError

_HELP = """commands:
  front-end    speed and memory of a bundle's front end on this machine

sf-bench COMMAND --help tells more.

example:
  sf-bench front-end out/bundle"""

_FRONT_END_HELP = """Every shape is run alone, after warm-up, with idle ONNX Runtime threads asleep. Times are wall-clock;
on a machine that others use too, compare figures of one run only.

examples:
  sf-bench front-end out/bundle
  sf-bench front-end out/bundle --tokens 16,64,256 --batch 1,8 --threads 1,2 --json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    return run_command("sf-bench", _dispatch, argv)


def _dispatch(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] == "front-end":
        return _front_end(arguments[1:])
    parser = ArgumentParser(prog="sf-bench", description="Measure what a bundle costs.", epilog=_HELP)
    parser.add_argument("command", metavar="COMMAND", choices=["front-end"])
    parser.add_argument("--version", action="version", version=SOFTWARE)
    parser.parse_args(arguments[:1])
    raise UsageError("no command given", cure="give front-end; sf-bench --help describes it")


def _front_end(arguments: Sequence[str]) -> int:
    from sf_bench.front_end import Plan, as_table, measure  # noqa: PLC0415  # NumPy and ONNX Runtime: not for --help

    parser = ArgumentParser(
        prog="sf-bench front-end", description="Measure a bundle's front end on this machine.", epilog=_FRONT_END_HELP
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder")
    parser.add_argument("--tokens", type=_whole_numbers, default=(16, 64), metavar="N,N", help="default: 16,64")
    parser.add_argument("--batch", type=_whole_numbers, default=(1,), metavar="N,N", help="default: 1")
    parser.add_argument("--threads", type=_whole_numbers, default=(1,), metavar="N,N", help="default: 1")
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="timed runs per shape (default: 30)")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON document on standard output")
    given = parser.parse_args(arguments)
    if given.repeats < 1:
        raise UsageError(f"--repeats {given.repeats} measures nothing", cure="give 1 or more")
    plan = Plan(tokens=given.tokens, batches=given.batch, threads=given.threads, repeats=given.repeats)
    report = measure(given.bundle, plan, say=say)
    if given.json:
        print_json(msgspec.to_builtins(report))
    else:
        print(as_table(report))
    return 0


def _whole_numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise ValueError
    return numbers
