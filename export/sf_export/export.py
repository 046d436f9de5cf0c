"""The export from checkpoint to bundles, step by step."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch

from sf_contract import __version__
from sf_contract.codec import WireCodec
from sf_contract.errors import ErrorBudgetExceeded
from sf_contract.int4 import Int4Parameters, calibrate
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
from sf_contract.samples import fill_template, template_fields
from sf_contract.signing import SigningKey, read_signing_key
from sf_export.bundle_writer import check_target, describe_bytes, write_bundle
from sf_export.calibration import Calibration, TokenIds, read_calibration
from sf_export.checked_graph import checked_graph
from sf_export.embedding import quantize_embedding
from sf_export.measure import (
    Reference,
    Speed,
    input_peaks,
    mean_error,
    measure_error,
    measure_speed,
    references_of,
    rows_of,
)
from sf_export.model import BaseForExport, load_base
from sf_export.quantize import GraphQuantizer, QuantizedGraph, embedding_choice, quantize_graph
from sf_export.settings import ExportSettings, Quantize
from sf_export.task import task_spec
from sf_model.front import FrontModel

GRAPH_FILE: Final = "front_end.onnx"
TOKENIZER_FILE: Final = "tokenizer.json.gz"
SELF_TEST_FILE: Final = "selftest.f32"
WIRE_FILE: Final = "wire.f32"
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


@dataclass(frozen=True, slots=True, eq=False)
class _Common:
    """What all cuts of one export share."""

    settings: ExportSettings
    base: BaseForExport
    spec: TaskSpec
    calibration: Calibration
    key: SigningKey | None
    threads: int
    say: Say


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """One cut: where it goes, and what the untouched model computes there.

    `self_test` are the sequences a device repeats; `int4` the parameters of that codec, None for others.
    """

    split_layer: int
    target: Path
    reference: Reference
    self_test: Reference
    int4: Int4Parameters | None


class _Steps:
    """Says which step begins, and how long it has taken until then."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self._total, self._done, self._start = say, total, 0, time.monotonic()

    def begin(self, what: str) -> None:
        self._done += 1
        self._say(f"{self._done}/{self._total} {what} ({time.monotonic() - self._start:.0f} s)")


def export_bundles(settings: ExportSettings, *, say: Say) -> list[ExportResult]:
    """Make a bundle for each cut; the model is read and run once for all of them.

    Raises:
        SplitFrozenError: the settings, the model or the calibration text cannot be used, or a cut's error is too large;
            bundles of the cuts before it are complete then, and of that cut nothing is written.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    steps = _Steps(say, 2 + 3 * len(settings.cuts))
    spec = task_spec(settings)
    key = None if settings.sign is None else read_signing_key(Path(settings.sign).expanduser())
    steps.begin(f"loading {settings.model}")
    common = _common(settings, spec, key, say)
    targets = _targets(settings, common.base.identity)
    _check_model(common)
    steps.begin(f"computing {common.calibration.tokens} tokens of {common.calibration.name} with the untouched model")
    cuts = _cuts(common, targets)
    return [_export_cut(common, cut, steps) for cut in cuts]


def default_folder(identity: BaseModel, split_layer: int) -> Path:
    """`bundles/<name>-cut<k>` under the current folder."""
    name = identity.name.rsplit("/", 1)[-1].removesuffix(".gguf")
    return Path("bundles") / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-cut{split_layer}"


def _common(settings: ExportSettings, spec: TaskSpec, key: SigningKey | None, say: Say) -> _Common:
    base = load_base(settings, spec, split_layers=settings.cuts, say=say)
    spec = msgspec.structs.replace(
        spec,
        template=msgspec.structs.replace(spec.template, prompt=base.template),
        end_token_id=base.end_token_id if spec.template.completion else None,
    )
    if settings.text_pair is not None:
        say(f"a pair becomes the text {base.template!r}")
    calibration = read_calibration(
        Path(settings.calibration) if settings.calibration else None,
        spec,
        base.tokenizer,
        max_tokens=settings.max_tokens,
    )
    if note := calibration.shortfall():
        say(note)
    return _Common(
        settings=settings,
        base=base,
        spec=spec,
        calibration=calibration,
        key=key,
        threads=torch.get_num_threads(),
        say=say,
    )


def _check_model(common: _Common) -> None:
    """Refuse a model that cannot be cut, or sequences it cannot hold, before anything that takes long."""
    for split_layer in common.settings.cuts:
        common.base.check_cut(split_layer)
    common.base.check_positions(common.base.front(common.settings.cuts[0]), common.settings.max_tokens)


def _targets(settings: ExportSettings, identity: BaseModel) -> list[Path]:
    """One folder per cut; several cuts go into numbered folders inside `--out`."""
    cuts = settings.cuts
    if settings.out is None:
        targets = [default_folder(identity, cut) for cut in cuts]
    elif len(cuts) == 1:
        targets = [Path(settings.out)]
    else:
        targets = [Path(settings.out) / f"cut{cut}" for cut in cuts]
    for target in targets:
        check_target(target)
    return targets


def _cuts(common: _Common, targets: Sequence[Path]) -> list[_Cut]:
    settings, model, sequences = common.settings, common.base.model, common.calibration.sequences
    references = references_of(model, settings.cuts, sequences)
    test_sequences = [ids[:_SELF_TEST_TOKENS] for ids in sequences[:_SELF_TEST_SEQUENCES]]
    test_sequences += _pair_sequences(common)
    self_tests = references_of(model, settings.cuts, test_sequences)
    return [
        _Cut(
            split_layer=split_layer,
            target=target,
            reference=reference,
            self_test=self_test,
            int4=calibrate(np.concatenate(reference.rows)) if settings.wire is WireCodec.INT4 else None,
        )
        for split_layer, target, reference, self_test in zip(
            settings.cuts, targets, references, self_tests, strict=True
        )
    ]


def _pair_sequences(common: _Common) -> list[TokenIds]:
    """A pair to repeat on devices, where texts are pairs: what is measured on may hold none."""
    fields = template_fields(common.spec.template.prompt)
    if len(fields) < 2 or common.spec.template.completion is not None:
        return []
    text = fill_template(common.spec.template.prompt, dict.fromkeys(fields, "one two three"))
    token_ids = common.base.tokenizer.encode(text, special_tokens=True, max_tokens=common.settings.max_tokens)
    return [tuple(token_ids[:_SELF_TEST_TOKENS])]


def _export_cut(common: _Common, cut: _Cut, steps: _Steps) -> ExportResult:
    settings = common.settings
    front = common.base.front(cut.split_layer)
    common.base.free_memory()  # the whole model is not needed again before the error is measured
    steps.begin(f"turning the layers below {cut.split_layer} into an ONNX graph")
    quantizer = _quantizer(common, cut, front)
    steps.begin(f"quantizing ({settings.quantize.value})")
    graph = quantize_graph(
        quantizer,
        settings.quantize,
        reference=cut.reference.part(_SEARCH_TOKENS),
        max_error=settings.error_limit,
        say=common.say,
    )
    steps.begin("measuring")
    speed = _speed(common, quantizer, graph)
    front_end = quantizer.front_end(graph.exact)
    self_test_error = mean_error(front_end, cut.self_test)
    rows = rows_of(front_end, cut.reference.sequences)
    del front, front_end, quantizer  # all hold weights; the model comes back for the next line
    error = measure_error(
        rows, common.base.model, cut.split_layer, reference=cut.reference, text=common.calibration.name
    )
    choices = graph.choices
    if settings.quantize is not Quantize.NONE:
        choices = (embedding_choice(settings.embedding), *choices)
    _check_budget(error, choices, settings)
    manifest, files = _bundle(common, cut, graph=graph, choices=choices, error=error, self_test_error=self_test_error)
    signature = None if common.key is None else common.key.sign(manifest)
    write_bundle(cut.target, manifest, files, signature=signature)
    return ExportResult(folder=cut.target, manifest=manifest, speed=speed)


def _speed(common: _Common, quantizer: GraphQuantizer, graph: QuantizedGraph) -> Speed:
    sequence = common.calibration.sequences[0]
    front_end = quantizer.front_end(graph.graph, threads=1)
    if common.settings.quantize is Quantize.NONE:
        return measure_speed(front_end, front_end, sequence)
    return measure_speed(front_end, quantizer.front_end(quantizer.fp32().graph, threads=1), sequence)


def _quantizer(common: _Common, cut: _Cut, front: FrontModel) -> GraphQuantizer:
    settings = common.settings
    # Before the embedding is rounded: smoothing looks at what the untouched layers see.
    peaks = input_peaks(front, cut.reference.part(_SEARCH_TOKENS).sequences)
    if settings.quantize is not Quantize.NONE:
        quantize_embedding(front, common.base.vocabulary, settings.embedding)
    model = checked_graph(front, hidden=common.base.hidden, codec=settings.wire, int4=cut.int4)
    return GraphQuantizer(
        model, peaks=peaks, target=settings.target, codec=settings.wire, int4=cut.int4, threads=common.threads
    )


def _check_budget(error: MeasuredError, choices: tuple[ProjectionChoice, ...], settings: ExportSettings) -> None:
    if error.mean <= settings.error_limit:
        return
    schemes = ", ".join(f"{choice.weights} {choice.scheme}" for choice in choices)
    raise ErrorBudgetExceeded(
        f"the best graph has {error.mean:.2%} mean error at the cut ({schemes}); "
        f"--max-error allows {settings.error_limit:.2%}",
        cure=_budget_cure(settings),
    )


def _budget_cure(settings: ExportSettings) -> str:
    if settings.quantize is Quantize.INT8:
        return "use --quantize auto, which searches for schemes that stay below it"
    if settings.quantize is Quantize.NONE:
        return "use a finer --wire (fp16, fp32) or raise --max-error"
    finer = "--embedding int8, " if settings.embedding.value == "int4" else ""
    return f"raise --max-error, use {finer}--quantize none or a finer --wire (int8, fp16, fp32)"


def _bundle(
    common: _Common,
    cut: _Cut,
    *,
    graph: QuantizedGraph,
    choices: tuple[ProjectionChoice, ...],
    error: MeasuredError,
    self_test_error: float,
) -> tuple[Manifest, dict[str, bytes]]:
    settings, base = common.settings, common.base
    files = {
        GRAPH_FILE: graph.graph,
        TOKENIZER_FILE: gzip.compress(base.tokenizer_json, mtime=0),
        SELF_TEST_FILE: np.concatenate(cut.self_test.rows).astype("<f4").tobytes(),
    }
    if cut.int4 is not None:
        files[WIRE_FILE] = cut.int4.to_bytes()
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        base_model=base.identity,
        geometry=Geometry(
            split_layer=cut.split_layer,
            layers=base.layers,
            hidden=base.hidden,
            vocabulary=base.vocabulary,
            max_tokens=settings.max_tokens,
        ),
        task=common.spec,
        wire_codec=settings.wire,
        wire_file=None if cut.int4 is None else WIRE_FILE,
        quantization=Quantization(
            requested=settings.quantize.value, target=settings.target.value, choices=choices, error=error
        ),
        graph_file=GRAPH_FILE,
        tokenizer_file=TOKENIZER_FILE,
        self_test=SelfTest(
            token_ids=cut.self_test.sequences,
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
