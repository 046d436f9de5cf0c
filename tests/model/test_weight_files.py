"""Weights are found whole before anything is loaded."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from sf_contract.errors import ModelError
from sf_model.progress import silent
from sf_model.weight_files import INDEX_FILE, find_weights


def _with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _tensor(dtype: str, shape: list[int], offsets: list[int]) -> bytes:
    return json.dumps({"a.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


def test_single_and_sharded_weights_are_described(llama, sharded):
    weights = find_weights(sharded)
    assert [file.name for file in weights.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert weights.tensors["model.norm.weight"].shape == (72,)
    assert weights.nbytes == sum(file.stat().st_size for file in sharded.glob("*.safetensors"))


def test_the_digest_depends_on_every_shard(sharded):
    before = find_weights(sharded).digest(silent)
    last = sharded / "model-00002-of-00002.safetensors"
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert find_weights(sharded).digest(silent) != before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "header too small"),
        (b"\x01\x02", "header too small"),
        (struct.pack("<Q", 1 << 62) + b"{}", "header too large"),
        (struct.pack("<Q", 1000) + b"{}", "invalid header length"),
        (_with_header(b"not json"), "invalid JSON"),
        (_with_header(b"[1, 2]"), "invalid JSON"),
        (_with_header(_tensor("F32", [4], [0, 16]), bytes(15)), "not fully covered"),
        (_with_header(_tensor("F32", [4], [0, 16]), bytes(17)), "not fully covered"),
        (_with_header(_tensor("F32", [1 << 62], [0, 16]), bytes(16)), "overflow|mismatch|info"),
        (_with_header(_tensor("F32", [4], [16, 0]), bytes(16)), "offset|invalid"),
        (_with_header(_tensor("X99", [4], [0, 16]), bytes(16)), "invalid JSON"),
        (_with_header(b"{}"), "without a tensor"),
    ],
)
def test_damaged_files_are_named_with_what_was_found(llama, content, why):
    (llama / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=why) as caught:
        find_weights(llama)
    assert "model.safetensors" in str(caught.value) or "llama" in str(caught.value)


def test_every_cut_of_a_file_is_noticed(llama):
    path = llama / "model.safetensors"
    whole = path.read_bytes()
    for length in [*range(0, 400, 7), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            find_weights(llama)


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 200), st.integers(1, 255))
def test_no_bytes_bring_anything_but_our_error(tmp_path_factory, content, position, flip):
    folder = tmp_path_factory.getbasetemp() / "any-bytes"
    folder.mkdir(exist_ok=True)
    whole = bytearray(save({"a.weight": torch.zeros(8), "b.weight": torch.ones(2, 2)}))
    whole[position % len(whole)] ^= flip
    for raw in (content, _with_header(content), bytes(whole)):
        (folder / "model.safetensors").write_bytes(raw)
        try:
            assert find_weights(folder).tensors
        except ModelError as problem:
            assert problem.cure


def test_quantized_weights_are_refused_by_their_dtype(llama):
    (llama / "model.safetensors").write_bytes(_with_header(_tensor("I8", [4], [0, 4]), bytes(4)))
    with pytest.raises(ModelError, match=r"a\.weight has dtype I8"):
        find_weights(llama)


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks 1 of the 2 shards.*model-00002"):
        find_weights(sharded)


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "a\\b.safetensors", "..", "x.bin", ""],
)
def test_an_index_never_leads_out_of_its_folder(sharded, shard):
    (sharded.parent / "outside.safetensors").write_bytes(save({"a": torch.zeros(1)}))
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelError, match="names the shard"):
        find_weights(sharded)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(sharded, content):
    (sharded / INDEX_FILE).write_text(content)
    with pytest.raises(ModelError, match="not an index"):
        find_weights(sharded)


def test_an_index_and_shards_of_different_versions_are_refused(sharded):
    index = json.loads((sharded / INDEX_FILE).read_text())
    index["weight_map"]["model.new.weight"] = "model-00001-of-00002.safetensors"
    (sharded / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"does not hold the tensor model\.new\.weight"):
        find_weights(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused_with_the_way_out(llama, name):
    (llama / "model.safetensors").rename(llama / name)
    with pytest.raises(ModelError, match="pickled weights") as caught:
        find_weights(llama)
    assert "convert them to safetensors" in caught.value.cure


def test_weights_under_another_name_are_named(llama):
    (llama / "model.safetensors").rename(llama / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"only adapter_model\.safetensors"):
        find_weights(llama)


def test_what_is_no_file_is_never_waited_for(llama: Path):
    (llama / "model.safetensors").unlink()
    os.mkfifo(llama / "model.safetensors")
    with pytest.raises(ModelError, match="is not a file"):
        find_weights(llama)
