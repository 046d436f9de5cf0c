"""`sf-server eval`: how good a run's adapter is, on samples its devices held out or on a labelled file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from sf_contract.bundle import Bundle
from sf_contract.command import ArgumentParser, print_json, say, usable_cores
from sf_contract.errors import DataError, UsageError
from sf_contract.manifest import Task
from sf_contract.messages import Role
from sf_model.back import BackEnd
from sf_server.pieces import Pieces, open_pieces
from sf_server.results.bundles import bundle_name
from sf_server.results.exact_match import AnswerRule, answer_rule, count_matches
from sf_server.results.generation import Generator
from sf_server.results.text_front import (
    FrontKind,
    LabelledRow,
    RowsOf,
    as_stored,
    labelled_rows,
    open_text_front,
)
from sf_server.results.trained import TrainedModel
from sf_server.run_folder import write_atomically
from sf_server.store.store import Store
from sf_server.training.model_card import with_scores
from sf_server.training.validation import Score, macro_f1, score_batches, score_samples

_HELP: Final = """\
Without --data: on the samples that the devices held out (--holdout). Their activations are in the store, as their bundles
computed them; their texts are not, so there is no fp32 front end to compare with.
With --data: on a labelled file on this machine, through the quantized front end of each bundle as a device would compute it,
and through the base model's own layers in fp32; the difference is what quantization costs.

Classification: accuracy, macro-F1 (the mean F1 of the classes, each counting the same), with --json also precision, recall
and F1 of each class. Causal-lm: loss, perplexity and accuracy per completion token; with --exact-match also the part of
completions that the model makes by itself, the likeliest token each time (slow).

examples:
  sf-server eval --run runs/intents
  sf-server eval --run runs/intents --data test.jsonl --json
  sf-server eval --run runs/intents --data test.jsonl --front-end bundle --by site
  sf-server eval --run runs/gsm8k --data test.jsonl --exact-match --answer-pattern '#### (.*)' --max-new-tokens 300"""
_SKIPPED_SHOWN: Final = 5


@dataclass(slots=True)
class Result:
    """What was measured through one front end."""

    score: Score
    exact_matches: int | None = None

    def as_dict(self, labels: Sequence[str]) -> dict[str, object]:
        """Plain numbers."""
        found = self.score.as_dict(labels)
        if self.exact_matches is not None:
            found["exact_match"] = self.exact_matches / max(self.score.samples, 1)
        return found


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of a file.

    `by` is the column that says whose a row is; `rule` None asks for no exact match.
    """

    path: Path
    kinds: tuple[FrontKind, ...]
    by: str | None
    rule: AnswerRule | None


def main_eval(arguments: Sequence[str]) -> int:
    """Run the command."""
    given = _parser().parse_args(arguments)
    rule = answer_rule(given.answer_pattern, max_new_tokens=given.max_new_tokens) if given.exact_match else None
    torch.set_num_threads(given.threads or usable_cores())
    pieces = open_pieces(given.run, model=given.model, say=_say)
    spec = pieces.bundle.manifest.task
    if rule is not None and (spec.task is not Task.CAUSAL_LM or given.data is None):
        raise UsageError(
            "--exact-match needs a causal-lm run and texts", cure="leave it out, or give a file with --data"
        )
    trained = TrainedModel(pieces)
    if given.data is None:
        results = _of_held_out(pieces, trained)
    else:
        kinds = tuple(FrontKind) if given.front_end == "both" else (FrontKind(given.front_end),)
        results = _of_file(pieces, trained, _Question(path=given.data, kinds=kinds, by=given.by, rule=rule))
    if given.card:
        _note_in_card(pieces, given.data, results)
    if given.json:
        print_json({name: result.as_dict(spec.labels) for name, result in results.items()})
    else:
        for name, result in results.items():
            _print(name, result, width=max(map(len, results)))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-server eval", description="Score a trained adapter.", epilog=_HELP)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="run folder of sf-server train")
    add("--data", type=Path, default=None, metavar="FILE", help="labelled .jsonl or .csv file")
    add("--front-end", choices=["bundle", "fp32", "both"], default="both", help="with --data (default: both)")
    add(
        "--by",
        default=None,
        metavar="COLUMN",
        help="with --data: a column that says whose a row is, to score each apart",
    )
    add("--exact-match", action="store_true", default=False, help="causal-lm, with --data: also compare completions")
    add(
        "--answer-pattern",
        default=None,
        metavar="REGEX",
        help="what of a completion is compared: the first group of the first match (default: all of it)",
    )
    add("--max-new-tokens", type=int, default=256, metavar="N", help="tokens of a completion, at most (default 256)")
    add("--card", action="store_true", default=False, help="also write the scores into the adapter's README.md")
    add("--model", default=None, metavar="M", help="base model, if it has moved since training")
    add("--threads", type=int, default=0, metavar="N", help="processor threads (default: all)")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    return parser


def _of_held_out(pieces: Pieces, trained: TrainedModel) -> dict[str, Result]:
    """Scored through the back end of each sample's own bundle."""
    score = Score()
    with Store.open_read_only(pieces.folder.store_path, int4=pieces.int4_parameters()) as store:
        infos = store.sample_infos(role=Role.VALIDATION)
        if not infos:
            raise DataError(
                "the devices held no samples out",
                cure="give a labelled file with --data, or run devices with --holdout",
            )
        origins = store.origins([info.seq for info in infos])
        for bundle in pieces.bundles:
            own = [info for info in infos if origins[info.seq].bundle_id == bundle.bundle_id]
            back_end = trained.back_end(bundle)
            score.add(
                score_samples(back_end, store, own, device=pieces.device, max_tokens=pieces.settings.batch_tokens)
            )
    return {"held-out": Result(score)}


def _of_file(pieces: Pieces, trained: TrainedModel, question: _Question) -> dict[str, Result]:
    rows, skipped = labelled_rows(pieces.bundle, question.path)
    for row in skipped[:_SKIPPED_SHOWN]:
        _say(f"{question.path}, line {row.line}: {row.reason}; skipped")
    if len(skipped) > _SKIPPED_SHOWN:
        _say(f"{question.path}: {len(skipped)} rows skipped in all")
    results: dict[str, Result] = {}
    for name, kind, bundle in _fronts(pieces.bundles, question.kinds):
        _say(f"{len(rows)} rows through {name}")
        way = _Way(bundle, open_text_front(pieces, kind, bundle), trained.back_end(bundle))
        results[name] = _through(way, pieces, rows, question)
    return results


def _fronts(bundles: Sequence[Bundle], kinds: Sequence[FrontKind]) -> Iterator[tuple[str, FrontKind, Bundle]]:
    """Every bundle's front end; the fp32 one once, as it is the same function whatever the cut."""
    if FrontKind.BUNDLE in kinds:
        for bundle in bundles:
            name = FrontKind.BUNDLE.value
            yield name if len(bundles) == 1 else f"{name} {bundle_name(bundle)}", FrontKind.BUNDLE, bundle
    if FrontKind.FP32 in kinds:
        yield FrontKind.FP32.value, FrontKind.FP32, bundles[-1]


@dataclass(frozen=True, slots=True)
class _Way:
    """From token ids to logits."""

    bundle: Bundle
    rows_of: RowsOf
    back_end: BackEnd


def _through(way: _Way, pieces: Pieces, rows: Sequence[LabelledRow], question: _Question) -> Result:
    batches = as_stored(rows, way.rows_of, max_tokens=pieces.settings.batch_tokens, by=question.by)
    result = Result(score_batches(way.back_end, batches, device=pieces.device))
    if question.rule is not None:
        max_tokens = way.bundle.manifest.geometry.max_tokens
        generator = Generator(way.rows_of, way.back_end, device=pieces.device, max_tokens=max_tokens)
        result.exact_matches = count_matches(generator, way.bundle, rows, question.rule)
    return result


def _note_in_card(pieces: Pieces, path: Path | None, results: Mapping[str, Result]) -> None:
    card = pieces.folder.adapter_path / "README.md"
    what = "samples that the devices held out" if path is None else path.name
    lines = [f"On {what}:", "", "| front end | score | exact match |", "| --- | --- | --- |"]
    for name, result in results.items():
        matched = "" if result.exact_matches is None else f"{result.exact_matches / result.score.samples:.1%}"
        lines.append(f"| {name} | {result.score.one_line()} | {matched} |")
    former = card.read_text(encoding="utf-8") if card.is_file() else ""
    write_atomically(card, with_scores(former, "\n".join(lines)).encode())
    _say(f"the scores are in {card}")


def _print(name: str, result: Result, *, width: int) -> None:
    score = result.score
    matched = "" if result.exact_matches is None else f", exact match {result.exact_matches / score.samples:.1%}"
    print(f"{name:{width}}  {score.one_line()}{matched} (always the commonest answer: {score.floor:.1%})")
    if len(score.by_device) > 1:
        for device, tally in sorted(score.by_device.items()):
            f1 = f", macro-F1 {macro_f1(tally.confusion):.3f}" if tally.confusion else ""
            print(
                f"  {device}: accuracy {tally.accuracy:.1%}{f1}, loss {tally.loss:.4f}, perplexity {tally.perplexity:.2f} "
                f"on {tally.targets} targets"
            )


def _say(text: str) -> None:
    say(f"sf-server eval: {text}")
