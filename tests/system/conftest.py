"""A tiny bundle made by the real exporter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.processes import BIN

LABELS = ("off", "on")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    subprocess.run(
        [
            BIN / "sf-export", "--split-layer", "2", "--model", tiny_model("llama"), "--task", "text-classification",
            "--labels", ",".join(LABELS), "--max-tokens", "32", "--out", folder,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return folder
