"""`sf-bench accuracy`: from the command line to a paired comparison."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sf_bench.accuracy.settings import AccuracySettings
from sf_bench.quality.statistics import HOW
from sf_contract.command import ArgumentParser, let_idle_threads_sleep, print_json, say
from sf_contract.settings import resolve_settings

_HELP = f"""Arms: `fp32` (the base model's own rows, PyTorch, not rounded for the wire) and each bundle (its graph, its wire
encoding), named after its folder. Every arm and seed is trained with sf-server's trainer on the same phrases in the same
order from the same new weights, and judged on the whole validation file with its own rows; with --fp32-rows also with fp32
rows, which is what a user of the published adapter gets with the untouched model.

{HOW}

Every finished cell (arm and seed) is one JSON file in --work. The command may be stopped at any time: started again it
computes what is missing, an interrupted training goes on from its last checkpoint, and finished cells may be of use to a
comparison with more bundles or seeds.

Training phrases: repeated ones are taken once, contradictory ones and those that occur word for word in a validation
sample not at all. Files are .parquet (with pyarrow), .jsonl or .csv with the columns the bundle's template names and
`label`: a class name, or its index.

examples:
  sf-bench accuracy --bundle out/int8 --bundle out/int4 --train train.parquet --validation validation.parquet --work acc
  sf-bench accuracy --bundle out/int8 --arms fp32 --train t.jsonl --validation v.jsonl --work acc      only the reference
  sf-bench accuracy --bundle out/int8 --train t.jsonl --validation v.jsonl --work acc --jobs 2 --json"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    let_idle_threads_sleep()
    given = vars(_parser().parse_args(arguments))
    settings = resolve_settings(AccuracySettings, toml_path=None, flags=given)
    from sf_bench.accuracy.comparison import run_comparison  # noqa: PLC0415  # PyTorch and ONNX Runtime: not for --help
    from sf_bench.accuracy.report import as_text  # noqa: PLC0415

    report = run_comparison(settings, say=lambda text: say(f"sf-bench accuracy: {text}"))
    if settings.json:
        print_json(msgspec.to_builtins(report))
    else:
        print(as_text(report))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sf-bench accuracy",
        description="Accuracy after training on quantized rows, against training on fp32 rows, paired.",
        epilog=_HELP,
    )
    parser.add_argument("--bundle", action="append", metavar="DIR", help="bundle folder; may be given several times")
    parser.add_argument("--train", metavar="FILE", help="labelled training phrases")
    parser.add_argument("--validation", metavar="FILE", help="labelled validation texts; all of them are used")
    parser.add_argument("--work", metavar="DIR", help="folder for finished and half-finished cells")
    parser.add_argument("--model", metavar="M", help="base model; by default the one the bundle names")
    parser.add_argument("--samples", type=int, metavar="N", help="training phrases per seed (default: 4000)")
    parser.add_argument("--seeds", type=_whole_numbers, metavar="N,N", help="default: 0,1,2")
    parser.add_argument("--epochs", type=int, metavar="N", help="times each phrase is trained on (default: 1)")
    parser.add_argument("--max-phrase-tokens", type=int, metavar="N", help="leave out longer training phrases")
    parser.add_argument("--batch-samples", type=int, metavar="N", help="phrases per training step (default: 16)")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="peak of the LoRA weights (default: 0.0003)")
    parser.add_argument(
        "--fp32-rows", action="store_true", help="judge bundles with fp32 rows too, as the published adapter is used"
    )
    parser.add_argument("--arms", type=_names, metavar="A,B", help="compute and report these arms only (default: all)")
    parser.add_argument("--jobs", type=int, metavar="N", help="arms computed at the same time (default: 1)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads of each (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
