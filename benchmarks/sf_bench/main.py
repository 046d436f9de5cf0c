"""The command `sf-bench`: a table of subcommands, each a module with `run(arguments)`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final

import msgspec

from sf_contract import SOFTWARE
from sf_contract.command import ArgumentParser, run_command
from sf_contract.errors import UsageError


class Command(msgspec.Struct, frozen=True):
    """A subcommand: the module whose function (`run(arguments) -> int` unless it is named) does it, and a line of help."""

    module: str
    help: str
    function: str = "run"


COMMANDS: Final = {
    "front-end": Command("sf_bench.front_end_command", "front ends on this machine: alone, or beside other runtimes"),
    "footprint": Command("sf_bench.footprint_command", "what a waiting sf-edge costs: start, memory, processor time"),
    "ingest": Command("sf_bench.ingest.command", "what the server's receiving side takes in, and how fairly"),
    "accuracy": Command("sf_bench.accuracy.command", "accuracy after training on quantized rows, against fp32 rows"),
    "cuts": Command("sf_bench.studies.command", "devices with different cuts in one run, against one cut", "run_cuts"),
    "one-class": Command("sf_bench.studies.command", "one class per device: pooled, central, apart", "run_one_class"),
    "completions": Command(
        "sf_bench.studies.command", "causal-lm behind a cut against centralised LoRA", "run_completions"
    ),
    "overlap": Command("sf_bench.overlap.command", "computing once while the server trains, against taking turns"),
    "training": Command("sf_bench.training.command", "a training step against Hugging Face Trainer with PEFT"),
    "soak": Command("sf_bench.soak.command", "memory and open files of a server under devices that keep sending"),
    "kernels": Command("sf_bench.kernels_command", "what ONNX Runtime's matrix products can reach on this processor"),
    "arm": Command("sf_bench.arm.command", "front ends on EMULATED ARM processors: instructions and self-test"),
    "arm-device": Command("sf_bench.arm.device_command", "a whole sf-edge run on EMULATED ARM, beside a native one"),
    "arm-kernels": Command("sf_bench.arm.kernels_command", "ONNX Runtime's matrix products on EMULATED ARM processors"),
    "arm-tests": Command("sf_bench.arm.suite_command", "the device's own tests on EMULATED ARM"),
    "arm-setup": Command("sf_bench.arm.setup_command", "prepare EMULATED ARM processors for sf-bench arm"),
}

_EXAMPLES: Final = """\
sf-bench COMMAND --help tells more.

examples:
  sf-bench front-end out/bundle
  sf-bench front-end out/bundle --against onnx-fp32,torch --model model.gguf --work /tmp/bench
  sf-bench kernels --rows 64"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    return run_command("sf-bench", _dispatch, argv)


def _dispatch(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        command = COMMANDS[arguments[0]]
        exit_code: int = getattr(importlib.import_module(command.module), command.function)(arguments[1:])
        return exit_code
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = ArgumentParser(
        prog="sf-bench", description="Measure what a bundle costs.", epilog=f"commands:\n{listed}\n\n{_EXAMPLES}"
    )
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS))
    parser.add_argument("--version", action="version", version=SOFTWARE)
    parser.parse_args(arguments[:1])
    raise UsageError("no command given", cure="give one of those that sf-bench --help lists")
