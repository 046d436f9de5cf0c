"""One arm of `sf-bench accuracy --jobs N` in a process of its own; started by the command, with its settings as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec

from sf_bench.accuracy.comparison import run_comparison
from sf_bench.accuracy.settings import AccuracySettings
from sf_contract.command import run_command, say


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the arm's cells; nothing is printed but progress."""
    return run_command("sf-bench accuracy", _run, argv)


def _run(arguments: Sequence[str]) -> int:
    settings = msgspec.json.decode(arguments[0], type=AccuracySettings)
    run_comparison(settings, say=lambda text: say(f"sf-bench accuracy: {text}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
