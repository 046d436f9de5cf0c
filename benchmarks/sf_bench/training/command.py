"""`sf-bench training`: from the command line to a report."""

from __future__ import annotations

import shlex
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from sf_bench.training.settings import QUICK, TrainingBenchSettings
from sf_contract.command import ArgumentParser, let_idle_threads_sleep, print_json, say
from sf_contract.settings import resolve_settings
from sf_server.options import add_option

_METAVARS: Final = {"bundle": "DIR", "data": "FILE", "work": "DIR", "model": "M", "report": "FILE"}
_DESCRIPTION: Final = """\
Speed and memory of a training step with its feed: the layers above the cut on stored rows, against the whole model in
Hugging Face Trainer with PEFT."""


def _epilog() -> str:
    from sf_bench.training.contest import CONTESTANTS  # noqa: PLC0415

    listed = "\n".join(f"  {name:27} {says}" for name, says in CONTESTANTS.items())
    return f"""contestants:
{listed}

Everyone has a process of their own and trains on the same batches, one turn per round in an order that changes; the first
turn of each does not count. Memory is the most that the process ever had, loading the model included. Use a machine that
does nothing else; where it does, believe the column by processor time.

examples:
  sf-bench training --bundle bundles/sst2 --data sst2.jsonl --work work/step --lora-first-layer 15 --profile --report step
  sf-bench training --bundle bundles/gsm8k --data gsm8k.jsonl --work work/long --batch-samples 8 --threads 2
  sf-bench training --random llama-1b --device cuda --dtype bf16 --work work/gpu --batch-tokens 16384 --lora-first-layer 8
  sf-bench training --random llama-tiny --work /tmp/try --quick --lora-first-layer 5"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    let_idle_threads_sleep()
    settings = read_settings(arguments)
    from sf_bench.quality.environment import describe_environment  # noqa: PLC0415
    from sf_bench.training.contest import hold_contest  # noqa: PLC0415
    from sf_bench.training.report import training_markdown, training_report  # noqa: PLC0415

    report = training_report(
        hold_contest(settings, say=lambda text: say(f"sf-bench training: {text}")),
        settings=settings,
        environment=describe_environment(threads=settings.threads, jobs=1),
        command=shlex.join(["sf-bench", "training", *arguments]),
    )
    markdown = training_markdown(report)
    if settings.report is not None:
        target = Path(settings.report)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        target.with_suffix(".md").write_text(markdown, encoding="utf-8")
    if settings.json:
        print_json(msgspec.to_builtins(report))
    else:
        print(markdown, end="")
    return 0


def read_settings(arguments: Sequence[str]) -> TrainingBenchSettings:
    """Settings from the command line; `--quick` replaces defaults, and nothing that is given.

    Raises:
        UsageError: they are unknown, out of range or missing.
    """
    given: dict[str, Any] = vars(_parser().parse_args(arguments))
    return resolve_settings(
        TrainingBenchSettings, toml_path=None, flags={**(QUICK if given.get("quick") else {}), **given}
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-bench training", description=_DESCRIPTION, epilog=_epilog())
    hints = typing.get_type_hints(TrainingBenchSettings, include_extras=True)
    plain = typing.get_type_hints(TrainingBenchSettings)
    for field in msgspec.structs.fields(TrainingBenchSettings):
        text = next(meta.description for meta in hints[field.name].__metadata__ if meta.description)
        add_option(parser, field, plain=plain[field.name], description=text, metavar=_METAVARS.get(field.name))
    return parser
