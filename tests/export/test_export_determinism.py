"""The same command gives the same bytes: on another day, from another folder, with other hash seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sf_contract.bundle import open_bundle

pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, "-c", "import sys; from sf_export.main import main; sys.exit(main())"]


def _export(working: Path, *options: str, hash_seed: str) -> Path:
    """`sf-export` as a process of its own, with a relative `--out`; the bundle's folder."""
    working.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [*PROGRAM, *options, "--out", "bundle"],
        cwd=working,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return working / "bundle"


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "options", [("--quantize", "auto"), ("--quantize", "none", "--wire", "fp32")], ids=lambda o: o[1]
)
def test_the_same_command_gives_the_same_bytes(
    tiny_model: Callable[[str], Path], sentences_file: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    command = [
        *("--model", str(tiny_model("llama")), "--split-layer", "2", "--labels", "on,off"),
        *("--max-tokens", "32", "--calibration", str(sentences_file), *options),
    ]
    first = _export(tmp_path / "here", *command, "--threads", "1", hash_seed="1")
    second = _export(tmp_path / "somewhere else", *command, "--threads", "1", hash_seed="2")
    assert open_bundle(first).bundle_id == open_bundle(second).bundle_id
    assert _contents(first) == _contents(second)


def test_the_number_of_threads_is_no_part_of_a_bundle(
    tiny_model: Callable[[str], Path], sentences_file: Path, tmp_path: Path
) -> None:
    """Whoever exports again to check a bundle has another machine."""
    command = [
        *("--model", str(tiny_model("llama")), "--split-layer", "2", "--labels", "on,off"),
        *("--max-tokens", "32", "--calibration", str(sentences_file), "--quantize", "auto"),
    ]
    one = _export(tmp_path / "one", *command, "--threads", "1", hash_seed="1")
    two = _export(tmp_path / "two", *command, "--threads", "2", hash_seed="1")
    graphs = [(folder / open_bundle(folder).manifest.graph_file).read_bytes() for folder in (one, two)]
    assert graphs[0] == graphs[1]
