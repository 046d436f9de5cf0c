"""What an export and an inspection print."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from sf_contract.manifest import Manifest, MeasuredError, ProjectionChoice, Task, encode_manifest
from sf_export.measure import Speed


class Report(TypedDict):
    """The machine-readable result of an export."""

    bundle: str
    bundle_id: str
    bytes: dict[str, int]
    schemes: dict[str, str]
    error: dict[str, float]
    loss: dict[str, float | None]
    next_token_accuracy: dict[str, float | None]
    tokens_per_s: dict[str, float]


def report_of(folder: Path, manifest: Manifest, speed: Speed | None) -> Report:
    """The result as JSON."""
    error = manifest.quantization.error
    return Report(
        bundle=str(folder),
        bundle_id=manifest.bundle_id,
        bytes=_sizes(manifest),
        schemes={choice.weights: choice.scheme for choice in manifest.quantization.choices},
        error={"mean": error.mean, "p99": error.p99, "worst": error.worst},
        loss={"fp32": error.loss_fp32, "quantized": error.loss_quantized},
        next_token_accuracy={"fp32": error.accuracy_fp32, "quantized": error.accuracy_quantized},
        tokens_per_s={} if speed is None else {"quantized": round(speed.quantized), "fp32": round(speed.fp32)},
    )


def table_of(manifest: Manifest, speed: Speed | None) -> str:
    """The result for a person."""
    geometry, error = manifest.geometry, manifest.quantization.error
    lines = [
        f"model      {manifest.base_model.name} ({manifest.base_model.model_type}), "
        f"layers 0-{geometry.split_layer - 1} of {geometry.layers}, hidden {geometry.hidden}",
        f"task       {_task(manifest)}",
        *_labelled("size", [f"{nbytes / 1e6:7.2f} MB  {name}" for name, nbytes in _sizes(manifest).items()]),
        f"target     {manifest.quantization.target}",
        *_labelled("schemes", _schemes(manifest)),
        f"error      mean {error.mean:.2%}, p99 {error.p99:.2%}, worst {error.worst:.2%} at the cut "
        f"({error.tokens} tokens of {error.text})",
    ]
    lines += _prediction_lines(error)
    if speed is not None:
        lines.append(
            f"speed      {speed.quantized:,.0f} tokens/s, fp32 graph {speed.fp32:,.0f} tokens/s "
            f"({speed.quantized / speed.fp32:.2f}x; 1 x 64 tokens, 1 thread, this machine)"
        )
    return "\n".join(lines)


def _prediction_lines(error: MeasuredError) -> list[str]:
    lines: list[str] = []
    if error.loss_fp32 is not None and error.loss_quantized is not None:
        change = error.loss_quantized - error.loss_fp32
        lines.append(
            f"loss       fp32 {error.loss_fp32:.4f}, through this bundle {error.loss_quantized:.4f} ({change:+.4f})"
        )
    if error.accuracy_fp32 is not None and error.accuracy_quantized is not None:
        points = 100 * (error.accuracy_quantized - error.accuracy_fp32)
        lines.append(
            f"accuracy   of the most likely next token: fp32 {error.accuracy_fp32:.2%}, "
            f"through this bundle {error.accuracy_quantized:.2%} ({points:+.2f} points)"
        )
    return lines


def next_commands(folder: Path, manifest: Manifest) -> str:
    """What to do with a new bundle."""
    return (
        "next\n"
        f"  on the server:  sf-server train --bundle {folder} --run runs/first --bind tcp://127.0.0.1:5555 --expect-devices 1\n"
        f"  on the device:  sf-edge run --bundle {folder} --server tcp://127.0.0.1:5555 --data {_data_example(manifest)}"
    )


def _data_example(manifest: Manifest) -> str:
    return "texts.jsonl" if manifest.task.task is Task.TEXT_CLASSIFICATION else "prompts.jsonl"


def _task(manifest: Manifest) -> str:
    spec = manifest.task
    if spec.task is Task.CAUSAL_LM:
        return f"{spec.task.value}, {spec.template.prompt!r} -> {spec.template.completion!r}"
    shown = ", ".join(spec.labels[:8]) + (f", ... ({len(spec.labels)})" if len(spec.labels) > 8 else "")
    return f"{spec.task.value}, {spec.template.prompt!r} -> {shown}"


def _sizes(manifest: Manifest) -> dict[str, int]:
    sizes = {file.name: file.nbytes for file in manifest.files}
    return {**sizes, "manifest.json": len(encode_manifest(manifest))}


def _schemes(manifest: Manifest) -> list[str]:
    """One line per kind of weight; what the choice costs, where the search measured it."""
    choices = manifest.quantization.choices
    width = max((len(choice.weights) for choice in choices), default=0)
    return [f"{choice.weights:{width}}  {choice.scheme:14}{_costs(choice)}".rstrip() for choice in choices]


def _costs(choice: ProjectionChoice) -> str:
    if choice.added_error is None or choice.relative_time is None:
        return ""
    return f"  adds {choice.added_error:.2%} error, about {choice.relative_time:.2f} of the time in fp32"


def _labelled(label: str, items: list[str]) -> list[str]:
    return [f"{label if index == 0 else '':10} {item}" for index, item in enumerate(items)]
