"""A `.gguf` file is converted once, whole, by one process."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch

from sf_contract.errors import ModelError
from sf_contract.manifest import Task
from sf_model import gguf_conversion
from sf_model.checkpoint import load_model, open_checkpoint, tokenizer_json
from sf_model.gguf_conversion import converted_gguf
from sf_model.progress import silent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "splitfrozen"


def test_a_gguf_file_opens_like_a_folder_and_draws_no_bars(tiny_gguf, cache, capsys):
    said: list[str] = []
    first = open_checkpoint(str(tiny_gguf), say=said.append)
    model = load_model(first, task=Task.CAUSAL_LM, dtype=torch.float32).model
    assert model.config.num_hidden_layers == 2
    assert tokenizer_json(first)[1] == 2
    assert len(said) == 1
    assert "converting tiny.gguf" in said[0]
    assert open_checkpoint(str(tiny_gguf), say=said.append).identity == first.identity
    assert len(said) == 1, "it was converted twice"
    assert capsys.readouterr() == ("", "")
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == [first.folder.name]


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "record", "empty"])
def test_a_damaged_conversion_is_noticed_and_made_again(tiny_gguf, damage):
    folder = open_checkpoint(str(tiny_gguf)).folder
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    match damage:
        case "cut":
            weights.write_bytes(before[:-1])
        case "flip":
            weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        case "remove":
            (folder / "tokenizer.json").unlink()
        case "record":
            (folder / "conversion.json").write_text("{}")
        case "empty":
            shutil.rmtree(folder)
            folder.mkdir()
    said: list[str] = []
    assert open_checkpoint(str(tiny_gguf), say=said.append).folder == folder
    assert "is damaged" in said[0]
    assert weights.read_bytes() == before
    assert (folder / "tokenizer.json").exists()


def test_what_killed_conversions_left_is_removed(tiny_gguf, cache):
    digest = "ab" * 32
    left = cache / f".gguf-{digest[:32]}-xyz"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    converted_gguf(tiny_gguf, digest, cache=cache, say=silent)
    assert not left.exists()


def test_a_failed_conversion_leaves_nothing(tiny_gguf, tmp_path, cache):
    path = tmp_path / "unknown.gguf"
    path.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(ModelError, match=r"unknown\.gguf cannot be converted"):
        open_checkpoint(str(path))
    assert [entry for entry in cache.iterdir() if entry.suffix != ".lock"] == []


def test_the_second_of_two_waits_for_the_first_and_uses_its_work(tiny_gguf, cache, monkeypatch):
    second_waits = threading.Event()
    conversions: list[str] = []
    convert = gguf_conversion._convert

    def slow(path, folder, say) -> None:
        conversions.append(path.name)
        second = threading.Thread(target=open_again)
        seconds.append(second)
        second.start()
        assert second_waits.wait(60)
        convert(path, folder, say)

    def open_again() -> None:
        found.append(converted_gguf(tiny_gguf, "cd" * 32, cache=cache, say=told))

    def told(line: str) -> None:
        if "waiting for another process" in line:
            second_waits.set()

    found: list[Path] = []
    seconds: list[threading.Thread] = []
    monkeypatch.setattr(gguf_conversion, "_convert", slow)
    first = converted_gguf(tiny_gguf, "cd" * 32, cache=cache, say=silent)
    seconds[0].join(60)
    assert found == [first]
    assert conversions == ["tiny.gguf"]
