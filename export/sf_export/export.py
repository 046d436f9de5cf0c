"""The export from checkpoint to bundle, step by step."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch

from sf_contract import __version__
from sf_contract.errors import ErrorBudgetExceeded
from sf_contract.front_end import FrontEnd
from sf_contract.manifest import (
    FORMAT_VERSION,
    BaseModel,
    Geometry,
    Manifest,
    MeasuredError,
    ProjectionChoice,
    Quantization,
    SelfTest,
    TaskSpec,
)
from sf_export.bundle_writer import check_target, describe_bytes, write_bundle
from sf_export.calibration import read_calibration
from sf_export.graph import export_graph, quantize_embedding
from sf_export.measure import Reference, Speed, input_peaks, mean_error, measure_error, measure_speed, reference_of
from sf_export.model import BaseForExport, load_base
from sf_export.quantize import EMBEDDING_CHOICE, GraphQuantizer, QuantizedGraph, quantize_graph
from sf_export.settings import ExportSettings, Quantize
from sf_export.task import task_spec
from sf_model.front import FrontModel, cut_front

GRAPH_FILE: Final = "front_end.onnx"
TOKENIZER_FILE: Final = "tokenizer.json"
SELF_TEST_FILE: Final = "selftest.f32"
_SEARCH_TOKENS: Final = 512
_SELF_TEST_SEQUENCES: Final = 4
_SELF_TEST_TOKENS: Final = 24
_TOOLS: Final = ("torch", "transformers", "onnx", "onnxruntime")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A bundle that was written.

    Attributes:
        folder: where it is.
        manifest: what it is.
        speed: tokens per second on this machine, beside the fp32 graph; it is no part of the bundle.
    """

    folder: Path
    manifest: Manifest
    speed: Speed


class _Steps:
    """Says which step begins, and how long it has taken until then."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self._total, self._done, self._start = say, total, 0, time.monotonic()

    def begin(self, what: str) -> None:
        self._done += 1
        self._say(f"{self._done}/{self._total} {what} ({time.monotonic() - self._start:.0f} s)")


def export_bundle(settings: ExportSettings, *, say: Say) -> ExportResult:
    """Make a bundle.

    Raises:
        SplitFrozenError: the settings, the model or the calibration text cannot be used, or the error is too large;
            nothing is written then.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    threads = torch.get_num_threads()
    steps = _Steps(say, 5)
    spec = task_spec(settings)
    steps.begin(f"loading {settings.model}")
    base = load_base(settings, spec, say=say)
    target = Path(settings.out) if settings.out else default_folder(base.identity, settings.split_layer)
    check_target(target)
    spec = msgspec.structs.replace(spec, end_token_id=base.end_token_id if spec.template.completion else None)
    calibration = read_calibration(
        Path(settings.calibration) if settings.calibration else None,
        spec,
        base.tokenizer,
        max_tokens=settings.max_tokens,
    )
    front = cut_front(base.model, settings.split_layer)
    base.check_positions(front, settings.max_tokens)

    steps.begin(f"computing {calibration.tokens} tokens of {calibration.name} with the untouched model")
    reference = reference_of(base.model, settings.split_layer, calibration.sequences)
    test_sequences = [ids[:_SELF_TEST_TOKENS] for ids in calibration.sequences[:_SELF_TEST_SEQUENCES]]
    self_test = reference_of(base.model, settings.split_layer, test_sequences)

    steps.begin(f"turning the layers below {settings.split_layer} into an ONNX graph")
    quantizer = _quantizer(front, base, reference, settings, threads)

    steps.begin(f"quantizing ({settings.quantize.value})")
    graph = quantize_graph(
        quantizer, settings.quantize, reference=reference.part(_SEARCH_TOKENS), max_error=settings.max_error
    )

    steps.begin("measuring")
    front_end = FrontEnd(graph.graph, codec=settings.wire, threads=threads)
    error = measure_error(front_end, base.model, settings.split_layer, reference=reference, text=calibration.name)
    choices = graph.choices if settings.quantize is Quantize.NONE else (EMBEDDING_CHOICE, *graph.choices)
    _check_budget(error, choices, settings)
    speed = measure_speed(
        FrontEnd(graph.graph, codec=settings.wire),
        FrontEnd(quantizer.fp32().graph, codec=settings.wire),
        calibration.sequences[0],
    )
    manifest, files = _bundle(
        base,
        spec,
        settings,
        graph=graph,
        choices=choices,
        error=error,
        self_test=self_test,
        self_test_error=mean_error(front_end, self_test),
    )
    write_bundle(target, manifest, files)
    return ExportResult(folder=target, manifest=manifest, speed=speed)


def default_folder(identity: BaseModel, split_layer: int) -> Path:
    """`bundles/<name>-cut<k>` under the current folder."""
    name = identity.name.rsplit("/", 1)[-1].removesuffix(".gguf")
    return Path("bundles") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-cut{split_layer}"


def _quantizer(
    front: FrontModel, base: BaseForExport, reference: Reference, settings: ExportSettings, threads: int
) -> GraphQuantizer:
    # Before the embedding is rounded: smoothing looks at what the untouched layers see.
    peaks = input_peaks(front, reference.part(_SEARCH_TOKENS).sequences)
    if settings.quantize is not Quantize.NONE:
        quantize_embedding(front, base.vocabulary)
    model = export_graph(front, hidden=base.hidden, codec=settings.wire)
    return GraphQuantizer(model, peaks=peaks, codec=settings.wire, threads=threads)


def _check_budget(error: MeasuredError, choices: tuple[ProjectionChoice, ...], settings: ExportSettings) -> None:
    if error.mean <= settings.max_error:
        return
    schemes = ", ".join(f"{choice.weights} {choice.scheme}" for choice in choices)
    raise ErrorBudgetExceeded(
        f"the best graph has {error.mean:.2%} mean error at the cut ({schemes}); "
        f"--max-error allows {settings.max_error:.2%}",
        cure=_budget_cure(settings),
    )


def _budget_cure(settings: ExportSettings) -> str:
    if settings.quantize is Quantize.INT8:
        return "use --quantize auto, which searches for schemes that stay below it"
    if settings.quantize is Quantize.NONE:
        return "use a finer --wire (fp16, fp32) or raise --max-error"
    return "raise --max-error, use --quantize none or a finer --wire (fp16, fp32)"


def _bundle(
    base: BaseForExport,
    spec: TaskSpec,
    settings: ExportSettings,
    *,
    graph: QuantizedGraph,
    choices: tuple[ProjectionChoice, ...],
    error: MeasuredError,
    self_test: Reference,
    self_test_error: float,
) -> tuple[Manifest, dict[str, bytes]]:
    files = {
        GRAPH_FILE: graph.graph,
        TOKENIZER_FILE: base.tokenizer_json,
        SELF_TEST_FILE: np.concatenate(self_test.rows).astype("<f4").tobytes(),
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        base_model=base.identity,
        geometry=Geometry(
            split_layer=settings.split_layer,
            layers=base.layers,
            hidden=base.hidden,
            vocabulary=base.vocabulary,
            max_tokens=settings.max_tokens,
        ),
        task=spec,
        wire_codec=settings.wire,
        quantization=Quantization(requested=settings.quantize.value, choices=choices, error=error),
        graph_file=GRAPH_FILE,
        tokenizer_file=TOKENIZER_FILE,
        self_test=SelfTest(
            token_ids=self_test.sequences,
            rows_file=SELF_TEST_FILE,
            max_mean_error=_self_test_limit(self_test_error),
        ),
        files=tuple(describe_bytes(name, content) for name, content in files.items()),
        tools={"splitfrozen": __version__, **{tool: version(tool) for tool in _TOOLS}},
    )
    return manifest, files


def _self_test_limit(error: float) -> float:
    """Room for other processors' kernels, which round differently, and none for another model."""
    return float(f"{max(1.5 * error + 0.005, 0.01):.4g}")
