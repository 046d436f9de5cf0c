"""The program that tokenizes a data file, natively or emulated: `ids_guest.py BUNDLE DATA`.

It is started by path, sees `sf_contract` and its libraries only, and prints one JSON list of token ids per usable row.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sf_contract.bundle import open_bundle
from sf_contract.command import run_command
from sf_contract.records import Row, read_records
from sf_contract.samples import UnusableRecord, tokenize


def main(argv: Sequence[str] | None = None) -> int:
    """Tokenize one file."""
    return run_command("ids-guest", _run, argv)


def _run(arguments: Sequence[str]) -> int:
    from sf_contract.tokenizer import open_tokenizer  # noqa: PLC0415

    bundle, data = open_bundle(Path(arguments[0])), Path(arguments[1])
    tokenizer, manifest = open_tokenizer(bundle), bundle.manifest
    ids = []
    for row in read_records(data):
        if isinstance(row, Row):
            try:
                sample = tokenize(row.record, manifest.task, tokenizer, max_tokens=manifest.geometry.max_tokens)
            except UnusableRecord:
                continue
            ids.append(list(sample.token_ids))
    print(msgspec.json.encode(ids).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
