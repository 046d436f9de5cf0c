"""`sf-server generate`: completions of a causal-lm run's adapter, printed as they are made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import torch
from msgspec import Meta

from sf_contract.bundle import Bundle
from sf_contract.command import ArgumentParser, print_json, say, usable_cores
from sf_contract.errors import UsageError
from sf_contract.given_texts import GIVEN_TEXTS_HELP, given_texts
from sf_contract.manifest import Task
from sf_contract.records import BadRow, Row
from sf_contract.samples import UnusableRecord, fill_template, template_fields
from sf_contract.settings import resolve_settings
from sf_contract.tokenizer import open_tokenizer
from sf_server.pieces import Pieces, open_pieces
from sf_server.results.bundles import BUNDLE_HELP, bundle_by_name
from sf_server.results.generation import Choosing, Completion, Ending, Generator, complete
from sf_server.results.text_front import FrontKind, open_text_front
from sf_server.results.trained import TrainedModel

_DESCRIPTION: Final = """\
Complete prompts with a run's adapter, through the bundle's quantized front end as a device would compute it, or through the
base model's own first layers in fp32. Without --temperature the likeliest token is taken each time."""

_EPILOG: Final = """\
Prompts come from the command line, from --data, or line by line from standard input, and go through the bundle's template.
The back end keeps keys and values of what came before. The front end computes everything so far again for each token, since
a bundle's graph keeps no state; only the last row of that is used.

examples:
  sf-server generate --run runs/gsm8k "A baker has 3 trays of 12 rolls and sells 20. How many are left?"
  sf-server generate --run runs/gsm8k --data test.jsonl --front-end fp32 --json
  sf-server generate --run runs/chat --temperature 0.8 --top-p 0.95 --seed 7 --stop "User:" "Hello"
"""


class GenerateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What bounds and ranges the options of `sf-server generate` have."""

    run: str
    front_end: FrontKind = FrontKind.BUNDLE
    bundle: str | None = None
    data: str | None = None
    model: str | None = None
    max_new_tokens: Annotated[int, Meta(ge=1, le=32_768)] = 128
    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    seed: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    stop: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = ()
    threads: Annotated[int, Meta(ge=0, le=4096)] = 0
    completion_only: bool = False
    json: bool = False


def main_generate(arguments: Sequence[str]) -> int:
    """Run the command."""
    flags = vars(_parser().parse_args(arguments))
    texts: list[str] = flags.pop("texts", [])
    settings = resolve_settings(GenerateSettings, toml_path=None, flags=flags)
    torch.set_num_threads(settings.threads or usable_cores())
    pieces = open_pieces(Path(settings.run), model=settings.model, say=_say)
    bundle = bundle_by_name(pieces.bundles, settings.bundle)
    _check_task(bundle)
    writer = _Writer(pieces, bundle, settings)
    fields = template_fields(bundle.manifest.task.template.prompt)
    path = None if settings.data is None else Path(settings.data)
    for row in given_texts(texts, fields=fields, path=path, lines=sys.stdin):
        writer.write(row)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-server generate", description=_DESCRIPTION, epilog=_EPILOG)
    add = parser.add_argument
    add("texts", nargs="*", metavar="PROMPT", help=GIVEN_TEXTS_HELP.replace("a text;", "a prompt;"))
    add("--run", required=True, metavar="DIR", help="run folder of sf-server train")
    add("--front-end", choices=[kind.value for kind in FrontKind], help="front end to compute with (default: bundle)")
    add("--bundle", metavar="NAME", help=BUNDLE_HELP)
    add("--data", metavar="FILE", help=".jsonl or .csv file of prompts")
    add("--model", metavar="M", help="base model, if it has moved since training")
    add("--max-new-tokens", type=int, metavar="N", help="tokens of a completion, at most (default 128)")
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="draw tokens, more boldly the higher; 0 takes the likeliest (default)",
    )
    add("--top-p", type=float, metavar="P", help="draw among the likeliest tokens that together have this probability")
    add("--seed", type=int, metavar="N", help="of the drawing (default 0)")
    add("--stop", action="append", metavar="TEXT", help="a text that ends a completion; may be given several times")
    add("--threads", type=int, metavar="N", help="processor threads (default: all)")
    add("--completion-only", action="store_true", help="do not print the prompts")
    add("--json", action="store_true", help="one JSON document per prompt, once it is complete")
    return parser


class _Writer:
    """Completes prompts and prints what comes."""

    def __init__(self, pieces: Pieces, bundle: Bundle, settings: GenerateSettings) -> None:
        self._settings = settings
        self._spec = bundle.manifest.task
        self._tokenizer = open_tokenizer(bundle)
        self._ending = Ending(
            max_new_tokens=settings.max_new_tokens, end_token_id=self._spec.end_token_id, stop=settings.stop
        )
        self._choosing = Choosing(temperature=settings.temperature, top_p=settings.top_p, seed=settings.seed)
        self._generator = Generator(
            open_text_front(pieces, settings.front_end, bundle),
            TrainedModel(pieces).back_end(bundle),
            device=pieces.device,
            max_tokens=bundle.manifest.geometry.max_tokens,
        )
        if not self._generator.is_cached:
            _say("this model cannot go on from kept keys and values; every token runs the whole sequence")

    def write(self, row: Row | BadRow) -> None:
        """Complete one prompt."""
        try:
            if isinstance(row, BadRow):
                raise UnusableRecord(row.reason)
            prompt = fill_template(self._spec.template.prompt, row.record)
            self._complete(prompt)
        except UnusableRecord as problem:
            if self._settings.json:
                print_json({"error": f"line {row.line}: {problem}"})
            else:
                print(f"(skipped: line {row.line}: {problem})", flush=True)

    def _complete(self, prompt: str) -> None:
        streams = not self._settings.json
        token_ids = self._tokenizer.encode(prompt, special_tokens=True, max_tokens=None)
        completion = Completion(self._tokenizer, self._ending.stop)
        is_first = True
        for piece in complete(self._generator, token_ids, completion, self._ending, self._choosing):
            if streams and is_first and not self._settings.completion_only:
                print(prompt, end="")
            is_first = False
            if streams:
                print(piece, end="", flush=True)
        if streams:
            print(flush=True)
            return
        print_json(
            {
                "prompt": prompt,
                "completion": completion.text,
                "token_ids": completion.token_ids,
                "ended_by": completion.reason,
            }
        )


def _check_task(bundle: Bundle) -> None:
    task = bundle.manifest.task.task
    if task is not Task.CAUSAL_LM:
        raise UsageError(f"the run is for {task.value}", cure="classify texts with sf-server predict")


def _say(text: str) -> None:
    say(f"sf-server generate: {text}")
