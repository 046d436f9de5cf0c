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
Other commands: sf-export inspect BUNDLE, sf-export verify BUNDLE.
"""

_EPILOG: Final = """\
examples:
  sf-export --split-layer 4 --labels negative,positive
  sf-export --split-layer 4 --model HuggingFaceTB/SmolLM2-135M --task causal-lm
  sf-export --split-layer 2 --model ./my-model --labels-from train.jsonl --template 'Review: {review}'
  sf-export --split-layer 4 --model model.gguf --labels a,b --config export.toml
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
            return _inspect(argv[1:])
        case ["verify"]:
            return _verify(argv[1:])
        case _:
            return _export(argv)


def _export_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-export", description=_DESCRIPTION, epilog=_EPILOG)
    add = parser.add_argument
    parser.add_argument("--version", action="version", version=SOFTWARE)
    add("--split-layer", type=int, metavar="K", help="number of leading layers that run on the device (required)")
    add("--model", metavar="ID|DIR|FILE", help="hub id, model folder or .gguf file (default: openai-community/gpt2)")
    add("--revision", metavar="R", help="hub branch, tag or commit")
    add("--task", metavar="TASK", help="text-classification (default) or causal-lm")
    add("--labels", type=_comma_separated, metavar="A,B,C", help="class names, in index order")
    add("--labels-from", metavar="FILE", help="class names, one per line, or a .jsonl/.csv file with a label column")
    add("--template", metavar="TEXT", help="text of a sample, columns in braces (default: {text}, causal-lm: {prompt})")
    add("--completion-template", metavar="TEXT", help="what a causal-lm sample is trained on (default: {completion})")
    add(
        "--quantize", metavar="MODE", help="auto (default: search under --max-error), int8 (plain dynamic), none (fp32)"
    )
    add("--max-error", type=float, metavar="E", help="largest mean relative error at the cut (default: 0.05)")
    add("--calibration", metavar="FILE", help="text to measure on: .txt, .jsonl or .csv (default: prose of our own)")
    add("--max-tokens", type=int, metavar="N", help="longest sequence in tokens (default: 256)")
    add("--wire", metavar="CODEC", help="encoding of the rows: int8 (default), fp16 or fp32")
    add("--out", metavar="DIR", help="the bundle's folder (default: bundles/<name>-cut<K>)")
    add("--threads", type=int, metavar="N", help="processor threads (default: PyTorch's choice, or OMP_NUM_THREADS)")
    add("--config", type=Path, metavar="FILE", help="TOML file with these settings")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def _comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _export(argv: Sequence[str]) -> int:
    from sf_export.settings import ExportSettings  # noqa: PLC0415

    flags: dict[str, Any] = vars(_export_parser().parse_args(argv))
    as_json = flags.pop("json", False)
    settings = resolve_settings(ExportSettings, toml_path=flags.pop("config", None), flags=flags)

    from sf_export.export import export_bundle  # noqa: PLC0415
    from sf_export.report import next_commands, report_of, table_of  # noqa: PLC0415

    result = export_bundle(settings, say=say)
    say(table_of(result.manifest, result.speed))
    if as_json:
        print_json(report_of(result.folder, result.manifest, result.speed))
        return 0
    print(f"{result.folder} {result.manifest.bundle_id}", flush=True)
    say(next_commands(result.folder, result.manifest))
    return 0


def _bundle_parser(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"sf-export {command}", description=description)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _inspect(argv: Sequence[str]) -> int:
    from sf_contract.bundle import open_bundle  # noqa: PLC0415
    from sf_export.report import report_of, table_of  # noqa: PLC0415

    arguments = _bundle_parser("inspect", "Say what a bundle holds, after checking its hashes.").parse_args(argv)
    bundle = open_bundle(arguments.bundle)
    if "json" in arguments:
        print_json(report_of(bundle.folder, bundle.manifest, None))
    else:
        print(f"bundle     {bundle.bundle_id}\n{table_of(bundle.manifest, None)}")
    return 0


def _verify(argv: Sequence[str]) -> int:
    from sf_contract.bundle import open_bundle  # noqa: PLC0415
    from sf_contract.front_end import open_front_end, run_self_test  # noqa: PLC0415

    description = "Check a bundle's hashes and compute its test vectors on this machine."
    arguments = _bundle_parser("verify", description).parse_args(argv)
    bundle = open_bundle(arguments.bundle)
    error = run_self_test(bundle, open_front_end(bundle))
    limit = bundle.manifest.self_test.max_mean_error
    if "json" in arguments:
        print_json({"bundle_id": bundle.bundle_id, "self_test_error": error, "self_test_limit": limit})
    else:
        print(f"{arguments.bundle} {bundle.bundle_id} is whole; self-test error {error:.2%} (limit {limit:.2%})")
    return 0
