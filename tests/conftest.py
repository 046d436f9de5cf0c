"""Fixtures and switches for all tests."""

from __future__ import annotations

import os

# Before any import of the libraries: no network, no telemetry, no thread pools that fight over two cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with few long tests first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: "system" not in item.path.parts)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory):
    """A function from family name to a folder with a tiny random checkpoint, made once per session."""
    from support.tiny_models import save_tiny_model

    made: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_model(family, tmp_path_factory.mktemp(f"tiny-{family}"))
        return made[family]

    return folder_of
