"""Opening base models: identity by content, clear refusals."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from sf_contract.errors import MismatchError, ModelError, SplitLayerError
from sf_contract.manifest import Task
from sf_model.blocks import check_split_layer, find_blocks
from sf_model.checkpoint import check_same_base, load_model, open_checkpoint, tokenizer_json
from sf_model.config_view import ConfigView, view_config
from support.tiny_models import FAMILIES, HIDDEN, LAYERS, VOCABULARY


@pytest.fixture
def copy(tiny_model, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model("llama"), folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_blocks_are_found_without_knowing_the_family(tiny_model, family):
    checkpoint = open_checkpoint(str(tiny_model(family)))
    assert view_config(checkpoint.config) == ConfigView(layers=LAYERS, hidden=HIDDEN, vocabulary=VOCABULARY)
    model = load_model(checkpoint, task=None, dtype=torch.float32).model
    assert len(find_blocks(model).modules) == LAYERS


def test_a_model_is_identified_by_its_content_and_not_by_its_place(tiny_model, copy):
    original = open_checkpoint(str(tiny_model("llama"))).identity
    moved = open_checkpoint(str(copy))
    assert moved.identity.weights_sha256 == original.weights_sha256
    check_same_base(moved, original)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MismatchError, match="was made from"):
        check_same_base(open_checkpoint(str(copy)), original)


def test_new_heads_are_named_and_drawn_from_the_seed(tiny_model):
    checkpoint = open_checkpoint(str(tiny_model("llama")))

    def head(seed: int) -> torch.Tensor:
        loaded = load_model(
            checkpoint, task=Task.TEXT_CLASSIFICATION, dtype=torch.float32, labels=("a", "b", "c"), seed=seed
        )
        assert loaded.new_modules == ("score",)
        return loaded.model.score.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    assert head(1).shape == (3, HIDDEN)


def test_loading_leaves_the_callers_random_state_alone(tiny_model):
    before = torch.get_rng_state()
    load_model(open_checkpoint(str(tiny_model("gpt2"))), task=Task.CAUSAL_LM, dtype=torch.float32, seed=9)
    assert torch.equal(before, torch.get_rng_state())


def test_the_tokenizer_comes_with_the_token_that_ends_a_text(tiny_model):
    document, end = tokenizer_json(open_checkpoint(str(tiny_model("llama"))))
    assert "model" in json.loads(document)
    assert end == 2


def test_a_hub_id_that_is_not_there_is_refused_without_network():
    with pytest.raises(ModelError, match="no model 'nobody/nothing'"):
        open_checkpoint("nobody/nothing")


def test_a_sharded_model_is_the_same_model(sharded, tiny_model):
    whole = load_model(open_checkpoint(str(tiny_model("llama"))), task=Task.CAUSAL_LM, dtype=torch.float32).model
    parts = load_model(open_checkpoint(str(sharded)), task=Task.CAUSAL_LM, dtype=torch.float32).model
    for (name, wanted), (_, found) in zip(whole.named_parameters(), parts.named_parameters(), strict=True):
        assert torch.equal(found, wanted), name


def test_a_file_that_is_no_model_is_refused(copy):
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        open_checkpoint(str(copy / "model.safetensors"))


def test_the_own_dtype_holds_every_weight_exactly(tiny_model, llama, change_tensors):
    assert open_checkpoint(str(tiny_model("llama"))).own_dtype is torch.float32

    def halve(tensors, *, but: str) -> None:
        for name in tensors:
            tensors[name] = tensors[name].bfloat16() if name != but else tensors[name]

    change_tensors(lambda tensors: halve(tensors, but="model.norm.weight"))
    assert open_checkpoint(str(llama)).own_dtype is torch.float32
    change_tensors(lambda tensors: halve(tensors, but=""))
    assert open_checkpoint(str(llama)).own_dtype is torch.bfloat16


def test_an_encoder_decoder_is_refused_with_the_reason():
    from transformers import T5Config

    with pytest.raises(ModelError, match="encoder-decoder"):
        view_config(T5Config(num_layers=2, d_model=16, num_heads=2, d_ff=16, vocab_size=32))


@pytest.mark.parametrize("cut", [-1, 0, 4, 99])
def test_a_cut_outside_the_model_names_the_range(cut):
    with pytest.raises(SplitLayerError) as caught:
        check_split_layer(cut, 4, "tiny")
    assert "1 to 3" in caught.value.cure


def test_a_model_that_cannot_be_cut_without_a_difference_is_refused(tiny_model, monkeypatch):
    """Stands in for architectures that pass state from layer to layer on the side: each call changes the next."""
    from sf_model.front import cut_front

    model = load_model(open_checkpoint(str(tiny_model("llama"))), task=None, dtype=torch.float32).model
    block = type(find_blocks(model).modules[0])
    original = block.forward
    calls = iter(range(1_000))

    def forward(self, hidden_states, **options):
        return original(self, hidden_states, **options) + next(calls)

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(ModelError, match="share state across the cut"):
        cut_front(model, 2)
