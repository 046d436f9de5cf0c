"""One cell of a study in a process of its own; started by the command, with its settings as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from sf_bench.studies.catalogue import open_by_name
from sf_bench.studies.study import Part
from sf_contract.command import run_command, say


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the cells; nothing is printed but progress."""
    return run_command("sf-bench", _run, argv)


def _run(arguments: Sequence[str]) -> int:
    part = msgspec.json.decode(arguments[0], type=Part)
    open_by_name(part.study, part.settings, say=lambda text: say(f"sf-bench: {text}")).cells()
    return 0


if __name__ == "__main__":
    sys.exit(main())
