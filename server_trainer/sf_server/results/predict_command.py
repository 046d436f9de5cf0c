"""`sf-server predict`: answers of a run's adapter for texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from sf_contract.command import ArgumentParser, print_json, say, usable_cores
from sf_contract.errors import DataError
from sf_contract.manifest import Task
from sf_contract.records import BadRow, Record, read_records
from sf_contract.samples import UnusableRecord, fill_template, template_fields
from sf_contract.tokenizer import open_tokenizer
from sf_model.back import BackEnd
from sf_server.pieces import Pieces, open_pieces, trained_back_end
from sf_server.results.text_front import FrontKind, RowsOf, open_text_front, tokenize_record
from sf_server.training.batch_tensors import decode_to_tensor

_HELP = """Texts come from the command line, from --data, or line by line from standard input.

examples:
  sf-server predict --run runs/intents "wake me up at six"
  sf-server predict --run runs/intents --data new.jsonl --json
  cat lines.txt | sf-server predict --run runs/intents"""


def main_predict(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(
        prog="sf-server predict",
        description="Classify texts, or complete prompts, with a trained adapter.",
        epilog=_HELP,
    )
    parser.add_argument("texts", nargs="*", default=[], metavar="TEXT", help="a text")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder of sf-server train")
    parser.add_argument("--data", type=Path, default=None, metavar="FILE", help=".jsonl or .csv file")
    parser.add_argument(
        "--front-end", choices=["bundle", "fp32"], default="bundle", help="front end to compute with (default: bundle)"
    )
    parser.add_argument("--model", default=None, metavar="M", help="base model, if it has moved since training")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="causal-lm: length of a completion")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads (default: all)")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON document per text")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads or usable_cores())
    pieces = open_pieces(given.run, model=given.model, say=_say)
    predictor = Predictor(pieces, FrontKind(given.front_end), max_new_tokens=given.max_new_tokens)
    for record in _records(pieces, given.texts, given.data):
        answer = predictor.answer(record)
        if given.json:
            print_json(answer)
        else:
            print(_one_line(answer), flush=True)
    return 0


class Predictor:
    """Front end and trained back end in one process."""

    def __init__(self, pieces: Pieces, kind: FrontKind, *, max_new_tokens: int) -> None:
        self._pieces = pieces
        self._spec = pieces.bundle.manifest.task
        self._tokenizer = open_tokenizer(pieces.bundle)
        self._rows_of: RowsOf = open_text_front(pieces, kind)
        self._back_end: BackEnd = trained_back_end(pieces)
        self._max_new_tokens = max_new_tokens

    def answer(self, record: Record) -> dict[str, object]:
        """The answer for one record: text with label and probability, or with completion; or an error."""
        try:
            text = fill_template(self._spec.template.prompt, record)
            if self._spec.task is Task.TEXT_CLASSIFICATION:
                return {"text": text, **self._classify(record)}
            return {"text": text, "completion": self._complete(text)}
        except UnusableRecord as problem:
            return {"error": str(problem)}

    def _classify(self, record: Record) -> dict[str, object]:
        sample = tokenize_record(self._pieces, self._tokenizer, record, need_label=False)
        probabilities = torch.softmax(self._logits(sample.token_ids)[0].float(), dim=-1)
        best = int(probabilities.argmax())
        return {"label": self._spec.labels[best], "probability": float(probabilities[best])}

    def _complete(self, prompt: str) -> str:
        """Greedy decoding; every step runs the whole sequence, which is simple and slow."""
        token_ids = self._tokenizer.encode(prompt, special_tokens=True, max_tokens=None)
        room = self._pieces.bundle.manifest.geometry.max_tokens
        if not 0 < len(token_ids) < room:
            raise UnusableRecord(f"the prompt has {len(token_ids)} tokens; 1 to {room - 1} are possible")
        start = len(token_ids)
        while len(token_ids) < min(room, start + self._max_new_tokens):
            token_ids.append(int(self._logits(token_ids)[0, -1].argmax()))
            if token_ids[-1] == self._spec.end_token_id:
                break
        return self._tokenizer.decode(token_ids[start:])

    @torch.no_grad()
    def _logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        rows, mask = self._back_end.pad([decode_to_tensor(self._rows_of(token_ids))])
        device = self._pieces.device
        logits: torch.Tensor = self._back_end(rows.to(device), mask.to(device))
        return logits


def _records(pieces: Pieces, texts: Iterable[str], path: Path | None) -> Iterator[Record]:
    fields = template_fields(pieces.bundle.manifest.task.template.prompt)
    if path is not None:
        for row in read_records(path):
            if isinstance(row, BadRow):
                _say(f"{path}, line {row.line}: {row.reason}; skipped")
            else:
                yield row.record
        return
    if len(fields) != 1:
        raise DataError(
            f"the bundle's template has the columns {', '.join(fields)}, so a bare text does not say which is meant",
            cure="give a file with these columns with --data",
        )
    for text in texts or _lines_of_standard_input():
        yield {fields[0]: text}


def _lines_of_standard_input() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")


def _one_line(answer: dict[str, object]) -> str:
    if "error" in answer:
        return f"(skipped: {answer['error']})"
    if "label" in answer:
        return f"{answer['label']}  {answer['probability']:.1%}  {answer['text']}"
    return f"{answer['text']}{answer['completion']}"


def _say(text: str) -> None:
    say(f"sf-server predict: {text}")
