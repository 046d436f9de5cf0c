"""`sf-server predict`: answers of a run's adapter for texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sf_contract.answers import USUAL_CLASSES, LikelyClass, prediction_json, prediction_line
from sf_contract.bundle import Bundle
from sf_contract.command import ArgumentParser, print_json, say, usable_cores
from sf_contract.errors import UsageError
from sf_contract.given_texts import GIVEN_TEXTS_HELP, given_texts
from sf_contract.limits import MAX_CLASSES_PER_TEXT
from sf_contract.manifest import Task
from sf_contract.records import BadRow, Record, Row
from sf_contract.samples import UnusableRecord, fill_template, template_fields
from sf_contract.tokenizer import open_tokenizer
from sf_server.pieces import Pieces, open_pieces
from sf_server.results.bundles import BUNDLE_HELP, bundle_by_name
from sf_server.results.generation import Completion, Ending, Generator, complete
from sf_server.results.text_front import FrontKind, open_text_front, tokenize_record
from sf_server.results.trained import TrainedModel
from sf_server.training.batch_tensors import decode_to_tensor

_HELP = """Texts come from the command line, from --data, or line by line from standard input. With a causal-lm run, texts are
prompts that are completed, the likeliest token each time; sf-server generate can do more.

examples:
  sf-server predict --run runs/intents "wake me up at six"
  sf-server predict --run runs/intents --data new.jsonl --json
  sf-server predict --run runs/mrpc '{"sentence1": "It rains.", "sentence2": "Rain falls."}'      a template of two columns
  cat lines.txt | sf-server predict --run runs/intents"""


def main_predict(arguments: Sequence[str]) -> int:
    """Run the command."""
    given = _parser().parse_args(arguments)
    if not 1 <= given.classes <= MAX_CLASSES_PER_TEXT:
        raise UsageError(f"--classes {given.classes} is not 1 to {MAX_CLASSES_PER_TEXT}", cure="give a number of these")
    torch.set_num_threads(given.threads or usable_cores())
    pieces = open_pieces(given.run, model=given.model, say=_say)
    bundle = bundle_by_name(pieces.bundles, given.bundle)
    predictor = Predictor(
        pieces, FrontKind(given.front_end), bundle, max_new_tokens=given.max_new_tokens, classes=given.classes
    )
    fields = template_fields(bundle.manifest.task.template.prompt)
    for row in given_texts(given.texts, fields=fields, path=given.data, lines=sys.stdin):
        answer = predictor.answer(row)
        if given.json:
            print_json(answer)
        else:
            print(_one_line(answer), flush=True)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sf-server predict", description="Classify texts with a trained adapter.", epilog=_HELP
    )
    add = parser.add_argument
    add("texts", nargs="*", default=[], metavar="TEXT", help=GIVEN_TEXTS_HELP)
    add("--run", type=Path, required=True, metavar="DIR", help="run folder of sf-server train")
    add("--data", type=Path, default=None, metavar="FILE", help=".jsonl or .csv file")
    add("--front-end", choices=["bundle", "fp32"], default="bundle", help="front end to compute with (default: bundle)")
    add("--bundle", default=None, metavar="NAME", help=BUNDLE_HELP)
    add("--model", default=None, metavar="M", help="base model, if it has moved since training")
    add(
        "--classes",
        type=int,
        default=USUAL_CLASSES,
        metavar="N",
        help=f"how many of the likeliest classes are told in JSON (default {USUAL_CLASSES})",
    )
    add("--max-new-tokens", type=int, default=64, metavar="N", help="causal-lm: length of a completion (default 64)")
    add("--threads", type=int, default=0, metavar="N", help="processor threads (default: all)")
    add("--json", action="store_true", default=False, help="one JSON document per text")
    return parser


class Predictor:
    """Front end and trained back end in one process."""

    def __init__(
        self, pieces: Pieces, kind: FrontKind, bundle: Bundle, *, max_new_tokens: int = 64, classes: int = USUAL_CLASSES
    ) -> None:
        manifest = bundle.manifest
        self._bundle = bundle
        self._spec = manifest.task
        self._classes = classes
        self._device = pieces.device
        self._tokenizer = open_tokenizer(bundle)
        self._rows_of = open_text_front(pieces, kind, bundle)
        self._back_end = TrainedModel(pieces).back_end(bundle)
        self._ending = Ending(max_new_tokens=max_new_tokens, end_token_id=manifest.task.end_token_id)
        self._generator = (
            Generator(self._rows_of, self._back_end, device=pieces.device, max_tokens=manifest.geometry.max_tokens)
            if manifest.task.task is Task.CAUSAL_LM
            else None
        )

    def answer(self, row: Row | BadRow) -> dict[str, object]:
        """The answer for one record: text with its likeliest classes, or with a completion; or an error."""
        if isinstance(row, BadRow):
            return {"error": f"line {row.line}: {row.reason}"}
        try:
            text = fill_template(self._spec.template.prompt, row.record)
            if self._generator is not None:
                return {"text": text, "completion": self._complete(self._generator, text)}
            return prediction_json(text, self._classify(row.record))
        except UnusableRecord as problem:
            return {"error": f"line {row.line}: {problem}"}

    @torch.no_grad()
    def _classify(self, record: Record) -> list[LikelyClass]:
        sample = tokenize_record(self._bundle, self._tokenizer, record, need_label=False)
        rows, mask = self._back_end.pad([decode_to_tensor(self._rows_of(sample.token_ids))])
        logits = self._back_end(rows.to(self._device), mask.to(self._device))[0]
        likely = torch.softmax(logits.float(), dim=-1).sort(descending=True, stable=True)
        return [
            LikelyClass(self._spec.labels[index], probability)
            for probability, index in zip(likely.values.tolist(), likely.indices.tolist(), strict=True)
        ][: self._classes]

    def _complete(self, generator: Generator, prompt: str) -> str:
        token_ids = self._tokenizer.encode(prompt, special_tokens=True, max_tokens=None)
        completion = Completion(self._tokenizer, ())
        for _ in complete(generator, token_ids, completion, self._ending):
            pass
        return completion.text


def _one_line(answer: dict[str, object]) -> str:
    if "error" in answer:
        return f"(skipped: {answer['error']})"
    if "completion" in answer:
        return f"{answer['text']}{answer['completion']}"
    return prediction_line(str(answer["text"]), [LikelyClass(str(answer["label"]), float(str(answer["probability"])))])


def _say(text: str) -> None:
    say(f"sf-server predict: {text}")
