"""Two finished runs of tiny models: one that classifies, with devices of two cuts, and one that completes prompts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from sf_server.pieces import Pieces
from support.finished_run import export_tiny, finished_run, for_classification
from support.tiny_models import WORDS

LABELS = ("off", "on", "dim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Exporting the bundles takes seconds, so every test that needs them is slow."""
    for item in items:
        if "tiny_bundles" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_bundles(tmp_path_factory, tiny_model) -> list[Path]:
    """Bundles for completing prompts, with cuts 1 and 3."""
    out = tmp_path_factory.mktemp("bundles")
    return export_tiny(tiny_model("llama"), out, split_layer=[1, 3], task="causal-lm", quantize="none")


@pytest.fixture(scope="session")
def classifying_run(tmp_path_factory, tiny_model, tiny_bundles) -> Pieces:
    folder = tmp_path_factory.mktemp("classifying")
    bundles = [for_classification(bundle, folder / bundle.name, labels=LABELS) for bundle in tiny_bundles]
    return finished_run(folder / "run", model=tiny_model("llama"), bundles=bundles)


@pytest.fixture(scope="session")
def completing_run(tmp_path_factory, tiny_model, tiny_bundles) -> Pieces:
    return finished_run(
        tmp_path_factory.mktemp("completing") / "run", model=tiny_model("llama"), bundles=tiny_bundles[1:]
    )


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Twenty texts of one to nine words."""
    words = itertools.cycle(WORDS)
    return [" ".join(itertools.islice(words, 1 + n % 9)) for n in range(20)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands take all cores unless told otherwise, and would fight over them with the tests beside these."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})


@pytest.fixture
def labelled_file(tmp_path, texts) -> Path:
    path = tmp_path / "labelled.jsonl"
    rows = [{"text": text, "label": LABELS[n % 3], "site": f"s{n % 2}"} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
