"""The command `sf-export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sf_contract import SOFTWARE
from sf_contract.command import ArgumentParser, let_idle_threads_sleep, print_json, run_command, say
from sf_contract.settings import resolve_settings

_DESCRIPTION: Final = """\
Turn the first layers of a language model into a bundle for devices.

The bundle holds a quantized ONNX graph of the embedding and the layers below the cut, the tokenizer, and test vectors.
Quantization is measured on real text against the untouched model; above --max-error nothing is written.
Other commands, each with its own --help: inspect, verify, keygen, sign, families.
"""

_EPILOG: Final = """\
examples:
  sf-export --split-layer 4 --labels negative,positive
  sf-export --split-layer 4 --model HuggingFaceTB/SmolLM2-135M --task causal-lm
  sf-export --split-layer 2 --model ./my-model --labels-from train.jsonl --template 'Review: {review}'
  sf-export --split-layer 2 --model google-bert/bert-base-uncased --labels 0,1 --text-pair sentence1,sentence2
  sf-export --split-layer 4 --model model.gguf --labels a,b --config export.toml
  sf-export --split-layer 2,4,8 --labels a,b --sign team.key --out bundles/gpt2
  sf-export --split-layer 4 --labels a,b --embedding int4 --wire int4 --max-error 0.1
  sf-export families
  sf-export inspect bundles/gpt2-cut4
  sf-export verify bundles/gpt2-cut4

Settings may stand in a TOML file (--config); options on the command line win. A bundle that exists is replaced.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `sf-export`; the exit code says what went wrong."""
    return run_command("sf-export", _dispatch, argv)


def _dispatch(argv: Sequence[str]) -> int:
    let_idle_threads_sleep()
    match list(argv[:1]):
        case ["inspect"]:
            from sf_export.inspection import inspect_command  # noqa: PLC0415

            return inspect_command(argv[1:])
        case ["verify"]:
            from sf_export.inspection import verify_command  # noqa: PLC0415

            return verify_command(argv[1:])
        case ["keygen"]:
            from sf_export.keys import keygen_command  # noqa: PLC0415

            return keygen_command(argv[1:])
        case ["sign"]:
            from sf_export.keys import sign_command  # noqa: PLC0415

            return sign_command(argv[1:])
        case ["families"]:
            from sf_export.families import families_command  # noqa: PLC0415

            return families_command(argv[1:])
        case _:
            return _export(argv)


def _export_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-export", description=_DESCRIPTION, epilog=_EPILOG)
    add = parser.add_argument
    parser.add_argument("--version", action="version", version=SOFTWARE)
    add(
        "--split-layer",
        type=_layers,
        metavar="K",
        help="number of leading layers that run on the device (required); 2,4,8 makes three bundles",
    )
    add("--model", metavar="ID|DIR|FILE", help="hub id, model folder or .gguf file (default: openai-community/gpt2)")
    add("--revision", metavar="R", help="hub branch, tag or commit")
    add("--task", metavar="TASK", help="text-classification (default) or causal-lm")
    add("--labels", type=_comma_separated, metavar="A,B,C", help="class names, in index order")
    add("--labels-from", metavar="FILE", help="class names, one per line, or a .jsonl/.csv file with a label column")
    add("--template", metavar="TEXT", help="text of a sample, columns in braces (default: {text}, causal-lm: {prompt})")
    add(
        "--text-pair",
        type=_comma_separated,
        metavar="A,B",
        help="classify two columns together (MRPC, MNLI): joined as the model's tokenizer joins a pair, with its separator and "
        "token types; on two lines where it has no such form",
    )
    add("--completion-template", metavar="TEXT", help="what a causal-lm sample is trained on (default: {completion})")
    add(
        "--quantize", metavar="MODE", help="auto (default: search under --max-error), int8 (plain dynamic), none (fp32)"
    )
    add(
        "--target",
        metavar="CPU",
        help="processors to choose for: any (default), x86_64, or arm64 (a little more precise there, wrong on others)",
    )
    add("--embedding", metavar="KIND", help="token embedding: int8 (default) or int4, which halves it")
    add(
        "--max-error",
        type=float,
        metavar="E",
        help="largest mean relative error at the cut (default: 0.03, more with int4)",
    )
    add("--calibration", metavar="FILE", help="text to measure on: .txt, .jsonl or .csv (default: prose of our own)")
    add("--max-tokens", type=int, metavar="N", help="longest sequence in tokens (default: 256)")
    add("--wire", metavar="CODEC", help="encoding of the rows: int8 (default), int4, fp16 or fp32")
    add(
        "--out",
        metavar="DIR",
        help="the bundle's folder (default: bundles/<name>-cut<K>); of several cuts, their parent",
    )
    add("--sign", metavar="KEY", help="sign the bundle with this private key (sf-export keygen)")
    add("--threads", type=int, metavar="N", help="processor threads (default: PyTorch's choice, or OMP_NUM_THREADS)")
    add("--config", type=Path, metavar="FILE", help="TOML file with these settings")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def _layers(text: str) -> int | list[int]:
    numbers = [int(part) for part in text.split(",")]
    return numbers if "," in text else numbers[0]


def _comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _export(argv: Sequence[str]) -> int:
    from sf_export.settings import ExportSettings  # noqa: PLC0415

    flags: dict[str, Any] = vars(_export_parser().parse_args(argv))
    as_json = flags.pop("json", False)
    settings = resolve_settings(ExportSettings, toml_path=flags.pop("config", None), flags=flags)

    from sf_export.export import export_bundles  # noqa: PLC0415
    from sf_export.report import next_commands, report_of, table_of  # noqa: PLC0415

    results = export_bundles(settings, say=say)
    for result in results:
        say(table_of(result.manifest, result.speed))
    if as_json:
        reports = [report_of(result.folder, result.manifest, result.speed) for result in results]
        print_json(reports[0] if isinstance(settings.split_layer, int) else reports)
        return 0
    for result in results:
        print(f"{result.folder} {result.manifest.bundle_id}", flush=True)
    say(next_commands(results[0].folder, results[0].manifest))
    return 0
