"""`sf-server eval`: how good a run's adapter is, on samples its devices held out or on a labelled file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from sf_contract.command import ArgumentParser, print_json, say, usable_cores
from sf_contract.errors import DataError
from sf_contract.messages import Role
from sf_model.back import BackEnd
from sf_server.pieces import Pieces, open_pieces, trained_back_end
from sf_server.results.text_front import FrontKind, as_stored, labelled_samples, open_text_front
from sf_server.store.store import Store
from sf_server.store.stored import StoredSample
from sf_server.training.validation import Score, score_batches, score_samples

_HELP = """Without --data: on the samples that the devices held out (--holdout), whose activations are in the store.
With --data: on a labelled file on this machine, through the bundle's quantized front end as a device would compute
it, and through the base model's own layers in fp32; the difference is what quantization costs.

examples:
  sf-server eval --run runs/intents
  sf-server eval --run runs/intents --data test.jsonl --json
  sf-server eval --run runs/intents --data test.jsonl --front-end bundle"""


def main_eval(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(prog="sf-server eval", description="Score a trained adapter.", epilog=_HELP)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder of sf-server train")
    parser.add_argument("--data", type=Path, default=None, metavar="FILE", help="labelled .jsonl or .csv file")
    parser.add_argument(
        "--front-end", choices=["bundle", "fp32", "both"], default="both", help="with --data (default: both)"
    )
    parser.add_argument("--model", default=None, metavar="M", help="base model, if it has moved since training")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="processor threads (default: all)")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON document on standard output")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads or usable_cores())
    pieces = open_pieces(given.run, model=given.model, say=_say)
    back_end = trained_back_end(pieces)
    if given.data is None:
        scores = {"held-out": _score_held_out(pieces, back_end)}
    else:
        kinds = list(FrontKind) if given.front_end == "both" else [FrontKind(given.front_end)]
        scores = _score_file(pieces, back_end, given.data, kinds)
    if given.json:
        print_json({name: score.as_dict() for name, score in scores.items()})
    else:
        for name, score in scores.items():
            _print(name, score)
    return 0


def _score_held_out(pieces: Pieces, back_end: BackEnd) -> Score:
    with Store.open_read_only(pieces.folder.store_path, int4=pieces.bundle.int4_parameters()) as store:
        infos = store.sample_infos(role=Role.VALIDATION)
        if not infos:
            raise DataError(
                "the devices held no samples out",
                cure="give a labelled file with --data, or run devices with --holdout",
            )
        return score_samples(back_end, store, infos, device=pieces.device, max_tokens=pieces.settings.batch_tokens)


def _score_file(pieces: Pieces, back_end: BackEnd, path: Path, kinds: Sequence[FrontKind]) -> dict[str, Score]:
    samples, skipped = labelled_samples(pieces, path)
    for row in skipped[:5]:
        _say(f"{path}, line {row.line}: {row.reason}; skipped")
    if len(skipped) > 5:
        _say(f"{path}: {len(skipped)} rows skipped in all")

    def batches(kind: FrontKind) -> Iterator[list[StoredSample]]:
        return as_stored(samples, open_text_front(pieces, kind), max_tokens=pieces.settings.batch_tokens)

    return {kind.value: score_batches(back_end, batches(kind), device=pieces.device) for kind in kinds}


def _print(name: str, score: Score) -> None:
    print(f"{name:9} {score.one_line()} (always the commonest answer: {score.floor:.1%})")
    if len(score.by_device) > 1:
        for device, tally in sorted(score.by_device.items()):
            print(f"  {device}: accuracy {tally.accuracy:.1%}, loss {tally.loss:.4f} on {tally.targets} targets")


def _say(text: str) -> None:
    say(f"sf-server eval: {text}")
