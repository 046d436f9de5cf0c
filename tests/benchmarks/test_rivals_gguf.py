"""GGUF files with the first layers of a model."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from sf_bench.rivals.gguf_layers import AS_IS, layer_count, write_layers
from sf_contract.errors import ModelError
from support.tiny_gguf import LAYERS, save_tiny_gguf


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def _tensors(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_the_first_layers_are_kept_bit_for_bit_and_the_others_are_gone(source, tmp_path):
    write_layers(source, tmp_path / "cut.gguf", layers=1, quantization=AS_IS)
    whole, cut = _tensors(source), _tensors(tmp_path / "cut.gguf")
    assert layer_count(source) == LAYERS
    assert layer_count(tmp_path / "cut.gguf") == 1
    assert set(cut) == {name for name in whole if not name.startswith("blk.1.")}
    assert all(np.array_equal(cut[name].data, whole[name].data) for name in cut if name != "output_norm.weight")


def test_the_final_norm_has_weight_one_so_that_rows_are_only_normalised(source, tmp_path):
    write_layers(source, tmp_path / "cut.gguf", layers=1, quantization=AS_IS)
    assert np.array_equal(_tensors(tmp_path / "cut.gguf")["output_norm.weight"].data, np.ones(32, dtype=np.float32))


def test_vocabulary_and_sizes_are_kept(source, tmp_path):
    write_layers(source, tmp_path / "cut.gguf", layers=1, quantization=AS_IS)
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "cut.gguf")
    changed = {key for key in before.fields if before.fields[key].contents() != after.fields[key].contents()}
    assert changed - {"GGUF.tensor_count"} == {"llama.block_count"}


def test_matrices_are_rounded_to_the_type_asked_for_and_vectors_are_not(source, tmp_path):
    write_layers(source, tmp_path / "q.gguf", layers=2, quantization="q4_0")
    kinds = {name: tensor.tensor_type.name for name, tensor in _tensors(tmp_path / "q.gguf").items()}
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    assert kinds["blk.0.ffn_down.weight"] == "F16", "48 columns are no multiple of the block of 32"
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_rounding_changes_weights_by_what_eight_bits_cost(source, tmp_path):
    write_layers(source, tmp_path / "q.gguf", layers=1, quantization="q8_0")
    exact = _tensors(source)["blk.0.attn_q.weight"].data
    rounded = _tensors(tmp_path / "q.gguf")["blk.0.attn_q.weight"]
    back = gguf.quants.dequantize(rounded.data, rounded.tensor_type)
    assert 0 < np.abs(back - exact).max() <= np.abs(exact).max() / 254 * 1.01


@pytest.mark.parametrize("layers", [0, LAYERS + 1])
def test_more_layers_than_there_are_are_refused(source, tmp_path, layers):
    with pytest.raises(ModelError, match=f"has {LAYERS} layers"):
        write_layers(source, tmp_path / "cut.gguf", layers=layers, quantization=AS_IS)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    path = tmp_path / "not.gguf"
    path.write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(ModelError, match="not a GGUF model"):
        layer_count(path)
