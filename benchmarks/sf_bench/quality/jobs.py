"""Parts of a comparison in processes of their own, some at the same time; afterwards their cells are on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from sf_contract.errors import TrainingFailed


def run_in_processes(module: str, parts: Sequence[msgspec.Struct], *, jobs: int, threads: int) -> None:
    """Run `python -m MODULE SETTINGS` for each part's settings as JSON, `jobs` at a time.

    Raises:
        TrainingFailed: one of them ended with an error, which it has told itself.
    """
    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(lambda part: _run(module, part, threads), parts))
    failed = sum(bool(code) for code in codes)
    if failed:
        raise TrainingFailed(
            f"{failed} of {len(parts)} parts were not finished", cure="see the messages above, and start again to go on"
        )


def _run(module: str, part: msgspec.Struct, threads: int) -> int:
    command = [sys.executable, "-m", module, msgspec.json.encode(part).decode()]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environment, check=False).returncode
