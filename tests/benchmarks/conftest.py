"""What tests of comparisons share: bundles of a tiny model, made with the real exporter, and sentences to learn from."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.processes import BIN
from support.tiny_models import WORDS

LABELS = ("off", "on")


@pytest.fixture
def trainer_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same trainer, without the seconds that a new process takes to load its libraries."""
    from sf_server.training.process import main

    def run_trainer(run: Path) -> int:
        return main(["--run", str(run)])

    monkeypatch.setattr("sf_bench.quality.server_run.run_trainer", run_trainer)


@pytest.fixture(scope="session")
def comparison_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_model) -> Callable[..., Path]:
    """Makes bundles of the tiny Llama model, or the parent folder of several; each once."""
    made: dict[tuple[str, ...], Path] = {}

    def bundle(name: str, *options: str, cuts: str = "2") -> Path:
        key = (name, cuts, *options)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("bundles") / name
            argv = ["--split-layer", cuts, "--model", tiny_model("llama"), "--max-tokens", "32", "--out", made[key]]
            subprocess.run([BIN / "sf-export", *argv, *options], check=True, capture_output=True)
        return made[key]

    return bundle


@pytest.fixture(scope="session")
def comparison_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Sentences that say on or off among other words; no validation sentence holds a training phrase."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    others = [word for word in WORDS if word not in LABELS]

    def sentence(words: int) -> dict[str, str]:
        label = LABELS[generator.integers(2)]
        chosen = [others[index] for index in generator.integers(len(others), size=words)]
        chosen.insert(int(generator.integers(words + 1)), label)
        return {"text": " ".join(chosen), "label": label}

    for name, count, words in (("train", 200, 5), ("validation", 40, 3)):
        rows = [json.dumps(sentence(words)) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "train.jsonl", folder / "validation.jsonl"
