"""`sf-bench front-end --against`: from the command line to a comparison with other runtimes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.rivals.compare import Comparison, Result, failed_result, measure_contestants
from sf_bench.rivals.comparison_table import markdown_of, placed
from sf_bench.rivals.contest import Contest, Contestant, bundle_contestant, find_interpreters, rival_contestants
from sf_bench.rivals.contestants import NATIVE, RUNTIMES, Rival, isa_note, parse_rivals
from sf_bench.rivals.prepare import PROSE, Front, check_same_front, fp32_bundle, model_of, read_text, text_windows
from sf_bench.rivals.worker_process import WorkerFailed
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.command import print_json, say
from sf_contract.errors import UsageError
from sf_contract.tokenizer import open_tokenizer
from sf_edge.bench.machine import describe_machine

CALIBRATION_WINDOWS: Final = 32


class ComparisonPlan(msgspec.Struct, frozen=True):
    """What to compare, and how.

    Attributes:
        bundles: folders of one front end in several quantizations.
        rivals: names for `parse_rivals`.
        work: folder for what is made once.
        model, revision: the checkpoint; None takes what the bundle names.
        gguf: the checkpoint for llama.cpp; None takes `model` if it is a GGUF file.
        text: file to measure on; None is the exporter's prose.
        tokens, windows, rounds, threads: sizes of the measurement.
        isas: instruction limits.
        pythons: interpreters by runtime.
    """

    bundles: tuple[Path, ...]
    rivals: str
    work: Path
    model: str | None
    revision: str | None
    gguf: Path | None
    text: Path | None
    tokens: int
    windows: int
    rounds: int
    threads: int
    isas: tuple[str, ...]
    pythons: Mapping[str, str]


def run_comparison(plan: ComparisonPlan, *, markdown: Path | None, as_json: bool) -> int:
    """Measure, print, and write the table where asked; the exit code."""
    comparison = compare(plan)
    table = markdown_of(comparison)
    if markdown is not None:
        document = markdown.read_text(encoding="utf-8") if markdown.exists() else None
        markdown.write_text(placed(table, document), encoding="utf-8")
    if as_json:
        print_json(msgspec.to_builtins(comparison))
    else:
        print(table, end="")
    for result in comparison.results:
        if result.failed is not None:
            say(f"sf-bench: {result.name} was not measured: {result.failed}")
    return 0


def compare(plan: ComparisonPlan) -> Comparison:
    """Measure every bundle and every rival in one run.

    Raises:
        SplitFrozenError: a name, package, model or text cannot be used; a rival that fails on the way becomes a row.
    """
    rivals = parse_rivals(plan.rivals)
    bundles = [open_bundle(folder) for folder in plan.bundles]
    check_same_front(bundles)
    _check_length(bundles, plan.tokens)
    contest = _contest(plan, rivals, bundles[0])
    contestants: list[Contestant] = [
        bundle_contestant(contest, bundle, _name_of(bundle), _says_of(bundle)) for bundle in bundles
    ]
    unprepared: list[Result] = []
    for rival in rivals:
        try:
            contestants += rival_contestants(contest, rival, say=say)
        except WorkerFailed as problem:
            unprepared.append(failed_result(rival.name, rival.says, NATIVE, str(problem)))
    results = measure_contestants(contest, contestants, rounds=plan.rounds, say=say)
    return Comparison(
        machine=describe_machine(),
        model=bundles[0].manifest.base_model.name,
        split_layer=contest.front.split_layer,
        tokens=plan.tokens,
        windows=plan.windows,
        rounds=plan.rounds,
        threads=plan.threads,
        text=PROSE if plan.text is None else plan.text.name,
        notes=_notes(plan, contest),
        results=(*results, *unprepared),
    )


def parse_pythons(given: Sequence[str]) -> dict[str, str]:
    """`RUNTIME=PATH` options as a mapping.

    Raises:
        UsageError: the runtime is unknown, or there is no path.
    """
    found: dict[str, str] = {}
    for option in given:
        runtime, _, path = option.partition("=")
        if runtime not in RUNTIMES or not path:
            raise UsageError(f"--python {option} is not RUNTIME=PATH", cure=f"runtimes are {', '.join(RUNTIMES)}")
        found[runtime] = path
    return found


def _contest(plan: ComparisonPlan, rivals: Sequence[Rival], bundle: Bundle) -> Contest:
    interpreters = find_interpreters(rivals, plan.pythons, python=sys.executable, work=plan.work)
    model = model_of(bundle.manifest, plan.model)
    front = Front(bundle.manifest, model, plan.revision or bundle.manifest.base_model.revision or "", plan.work)
    tokenizer = open_tokenizer(bundle)
    windows = text_windows(read_text(plan.text), tokenizer, tokens=plan.tokens, windows=plan.windows)
    prose = read_text(None)
    calibration_windows = min(CALIBRATION_WINDOWS, len(prose) // (8 * plan.tokens)) or 1
    return Contest(
        front=front,
        fp32=fp32_bundle(front, say=say),
        gguf=plan.gguf or (Path(model) if model.endswith(".gguf") else None),
        windows=windows,
        calibration=text_windows(prose, tokenizer, tokens=plan.tokens, windows=calibration_windows),
        threads=plan.threads,
        isas=plan.isas,
        flags=describe_machine().flags,
        interpreters=interpreters,
    )


def _check_length(bundles: Sequence[Bundle], tokens: int) -> None:
    for bundle in bundles:
        longest = bundle.manifest.geometry.max_tokens
        if tokens > longest:
            raise UsageError(
                f"--tokens {tokens} is more than the {longest} that {bundle.folder} allows",
                cure="give fewer tokens, or export with a larger --max-tokens",
            )


def _name_of(bundle: Bundle) -> str:
    return f"splitfrozen:{bundle.folder.resolve().name}"


def _says_of(bundle: Bundle) -> str:
    schemes = sorted({choice.scheme for choice in bundle.manifest.quantization.choices})
    return f"bundle {bundle.bundle_id[:12]}, {bundle.manifest.wire_codec.value} rows, {', '.join(schemes) or 'fp32'}"


def _notes(plan: ComparisonPlan, contest: Contest) -> tuple[str, ...]:
    notes = [isa_note(plan.isas, contest.flags)]
    if plan.text is None:
        notes.append(
            "the text is the one that quantization is calibrated on, so errors flatter everyone who calibrates"
        )
    return tuple(note for note in notes if note)
