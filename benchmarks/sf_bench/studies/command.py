"""`sf-bench cuts`, `one-class` and `completions`: from the command line to a report."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from sf_bench.studies.settings import QUICK, StudySettings
from sf_contract.command import ArgumentParser, let_idle_threads_sleep, print_json, say
from sf_contract.settings import resolve_settings
from sf_server.options import add_option

_SHARED: Final = """Every finished cell (a way of training and a seed) is one JSON file in --work. Stop at any time: started
again, the command computes what is missing, and a run of the server's trainer goes on from its last checkpoint. All ways
share seeds, samples, their order, batches, number of steps, learning rates, initial weights and the layers with LoRA. Nothing
is tuned, and nothing is chosen by the validation file. --jobs 2 --threads 1 uses two cores."""

_METAVARS: Final = {"train": "FILE", "validation": "FILE", "work": "DIR", "model": "M", "report": "FILE"}


@dataclass(frozen=True, slots=True)
class _About:
    study: str
    name: str
    description: str
    epilog: str


_CUTS: Final = _About(
    study="CutsStudy",
    name="cuts",
    description="Devices with different cuts in one run, against devices that all have the deepest of these cuts.",
    epilog="""ways:
  mixed    the samples are dealt to as many devices as there are bundles, one bundle each; shallower ones are lifted
  single   the same samples, every device with the deepest cut
Both train LoRA from the deepest cut on. Judged on the whole validation file: every cut with its own bundle's front end and
wire encoding, and the published adapter alone in the untouched fp32 model (plain PEFT); how often the former answer like the
latter stands beside the error that the bundle states.

examples: 4,000 phrases of SST-2 on three devices, about half an hour on two cores for SmolLM2-135M:
  sf-export --split-layer 2,4,8 --model MODEL --labels negative,positive --template '{sentence}' --out bundles
  sf-bench cuts --bundle bundles/CUT2 --bundle bundles/CUT4 --bundle bundles/CUT8 --model MODEL --train train.parquet \\
           --validation validation.parquet --max-phrase-tokens 24 --jobs 2 --work work/cuts --report results/cuts""",
)
_ONE_CLASS: Final = _About(
    study="OneClassStudy",
    name="one-class",
    description="One class per device: pooled by the server, centralised, and with devices kept apart.",
    epilog="""ways:
  pooled   the server's trainer, which mixes the samples of all devices
  central  centralised LoRA: the whole model in one place, fp32, plain PEFT and PyTorch, no front end and no wire. LoRA in
           the same layers; the same samples, batches, steps and learning rates as pooled, taken from the server's schedule
  no-pool  the server's trainer with --no-pool: one device after the other, in every epoch
Device d holds class d modulo the classes; the devices of a class share its samples. Pooled and no-pool are judged behind the
bundle's front end, as devices are answered, and the adapter alone in the whole fp32 model.

examples: SST-2 on four devices, about half an hour on two cores for SmolLM2-135M:
  sf-bench one-class --bundle bundles/CUT4 --model MODEL --train train.parquet --validation validation.parquet \\
           --max-phrase-tokens 24 --jobs 2 --work work/one-class --report results/one-class""",
)
_COMPLETIONS: Final = _About(
    study="CompletionsStudy",
    name="completions",
    description="Causal language modelling behind a cut, against centralised LoRA; greedy answers, against the merged model.",
    epilog="""ways:
  split    the server's trainer on rows of the bundle's front end
  central  centralised LoRA: the whole model in one place, fp32, plain PEFT and PyTorch; LoRA in the same layers, the same
           batches, steps and learning rates
Loss of the completions of held-out problems, nats per completion token. Problems longer than --max-phrase-tokens are left
out, not cut. After the split training, prompts of held-out problems are answered greedily by what sf-server generate runs,
with the adapter and with the merged model behind the same front end, and compared token by token.

examples: GSM8K, about half an hour on two cores for SmolLM2-135M:
  sf-export --split-layer 4 --model MODEL --task causal-lm --template 'Question: {question} Answer: ' \\
            --completion-template '{answer}' --out bundles/gsm8k
  sf-bench completions --bundle bundles/gsm8k --model MODEL --train train.parquet --validation test.parquet --seeds 0 \\
           --samples 1000 --validation-samples 100 --max-phrase-tokens 144 --jobs 2 --work work/gsm8k --report results/gsm8k""",
)


def run_cuts(arguments: Sequence[str]) -> int:
    """Run `sf-bench cuts`; its exit code."""
    return _run(_CUTS, arguments)


def run_one_class(arguments: Sequence[str]) -> int:
    """Run `sf-bench one-class`; its exit code."""
    return _run(_ONE_CLASS, arguments)


def run_completions(arguments: Sequence[str]) -> int:
    """Run `sf-bench completions`; its exit code."""
    return _run(_COMPLETIONS, arguments)


def read_settings(name: str, arguments: Sequence[str], *, description: str = "", epilog: str = "") -> StudySettings:
    """Settings from the command line; `--quick` replaces defaults, and nothing that is given.

    Raises:
        UsageError: they are unknown, out of range or missing.
    """
    given: dict[str, Any] = vars(_parser(name, description, epilog).parse_args(arguments))
    return resolve_settings(StudySettings, toml_path=None, flags={**(QUICK if given.get("quick") else {}), **given})


def _run(about: _About, arguments: Sequence[str]) -> int:
    let_idle_threads_sleep()
    settings = read_settings(about.name, arguments, description=about.description, epilog=about.epilog)
    from sf_bench.studies.catalogue import run_study  # noqa: PLC0415  # PyTorch and ONNX Runtime: not for --help

    report, markdown = run_study(
        about.study,
        settings,
        arguments=[about.name, *arguments],
        say=lambda text: say(f"sf-bench {about.name}: {text}"),
    )
    if settings.report is not None:
        write_report(Path(settings.report), report, markdown)
    if settings.json:
        print_json(msgspec.to_builtins(report))
    else:
        print(markdown, end="")
    return 0


def write_report(path: Path, report: msgspec.Struct, markdown: str) -> None:
    """`PATH.md` for people and `PATH.json` for programs; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(markdown, encoding="utf-8")
    path.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def _parser(name: str, description: str, epilog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"sf-bench {name}", description=description, epilog=f"{epilog}\n\n{_SHARED}")
    hints = typing.get_type_hints(StudySettings, include_extras=True)
    plain = typing.get_type_hints(StudySettings)
    for field in msgspec.structs.fields(StudySettings):
        description = next(meta.description for meta in hints[field.name].__metadata__ if meta.description)
        match field.name:
            case "bundle":
                parser.add_argument("--bundle", action="append", metavar="DIR", help=f"{description} (needed)")
            case "seeds":
                parser.add_argument("--seeds", type=_whole_numbers, metavar="N,N", help=f"{description} (0,1,2)")
            case _:
                add_option(
                    parser,
                    field,
                    plain=plain[field.name],
                    description=description,
                    metavar=_METAVARS.get(field.name),
                )
    return parser


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
