"""Model folders to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.tiny_gguf import save_tiny_gguf

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def llama(tiny_model, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to damage."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "llama"))


@pytest.fixture
def change_tensors(llama: Path) -> Callable[[Callable[[Tensors], None]], Path]:
    """Write the copy's weights again after a change to them."""

    def change(edit: Callable[[Tensors], None]) -> Path:
        path = llama / "model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return llama

    return change


@pytest.fixture
def change_config(llama: Path) -> Callable[..., Path]:
    """Write the copy's config again with other values; None takes a key away."""

    def change(**values: object) -> Path:
        path = llama / "config.json"
        config = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        return llama

    return change


@pytest.fixture
def sharded(llama: Path) -> Path:
    """The copy's weights in two shards with an index."""
    tensors = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in halves.items():
        save_file({name: tensors[name] for name in held}, llama / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, held in halves.items() for name in held}
    (llama / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return llama


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole `.gguf` file; tests that damage it copy it first."""
    return save_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
