"""`sf-server merge`: base model and adapter as one ordinary Transformers folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import UsageError
from sf_server.pieces import Pieces, open_pieces
from sf_server.training.lora import merge

_HELP = """The folder opens with from_pretrained, without PEFT and without SplitFrozen.

example:
  sf-server merge --run runs/intents --out models/intents"""


def main_merge(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(
        prog="sf-server merge", description="Add a trained adapter into its base model.", epilog=_HELP
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder of sf-server train")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the merged model")
    parser.add_argument("--model", default=None, metavar="M", help="base model, if it has moved since training")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="dtype to save (default: fp32)")
    parser.add_argument("--json", action="store_true", default=False, help="result as JSON on standard output")
    given = parser.parse_args(arguments)
    if given.out.exists():
        raise UsageError(f"{given.out} exists already", cure="give a new folder with --out")
    pieces = open_pieces(given.run, model=given.model, say=_say)
    write_merged(pieces, given.out, dtype=torch.float32 if given.dtype == "fp32" else torch.bfloat16)
    if given.json:
        print_json({"merged": str(given.out)})
    _say(f"the merged model is in {given.out}")
    return 0


def write_merged(pieces: Pieces, out: Path, *, dtype: torch.dtype) -> None:
    """Merge in fp32, save in `dtype`; the folder appears whole or not at all."""
    scratch = out.with_name(f".{out.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    merged = merge(pieces.load_model(torch.float32).model, pieces.folder.adapter_path)
    merged.to(dtype)  # type: ignore[arg-type]
    try:
        merged.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(pieces.checkpoint.folder).save_pretrained(scratch)
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _say(text: str) -> None:
    say(f"sf-server merge: {text}")
