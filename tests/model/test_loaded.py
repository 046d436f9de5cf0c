"""No weight is ever drawn at random, misread or not a number without a word."""

from __future__ import annotations

import math

import pytest
import torch

from sf_contract.errors import ModelError
from sf_contract.manifest import Task
from sf_model.checkpoint import load_model, open_checkpoint


def _load(folder, task: Task | None = Task.CAUSAL_LM, **options):
    return load_model(open_checkpoint(str(folder)), task=task, dtype=torch.float32, **options)


@pytest.mark.parametrize("task", [Task.CAUSAL_LM, Task.TEXT_CLASSIFICATION, None])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.3.input_layernorm.weight",
        "model.norm.weight",
    ],
)
def test_a_weight_of_the_base_model_that_is_missing_is_named(change_tensors, name, task):
    folder = change_tensors(lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match="lacks 1 of the weights") as caught:
        _load(folder, task, labels=("a", "b"))
    assert name.removeprefix("model.") in str(caught.value)


def test_a_missing_language_head_is_refused_where_it_is_needed_and_only_there(change_tensors):
    folder = change_tensors(lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        _load(folder)
    assert _load(folder, Task.TEXT_CLASSIFICATION, labels=("a", "b")).new_modules == ("score",)


def test_a_tied_head_is_not_missing(change_tensors, change_config):
    change_tensors(lambda tensors: tensors.pop("lm_head.weight"))
    assert _load(change_config(tie_word_embeddings=True)).new_modules == ()


def test_berts_pooler_belongs_to_the_head(tiny_model):
    assert _load(tiny_model("bert"), None).new_modules == ("pooler.dense",)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["model.layers.2.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_are_named(change_tensors, name, value):
    def spoil(tensors) -> None:
        tensors[name].view(-1)[-1] = value

    with pytest.raises(ModelError, match="not finite") as caught:
        _load(change_tensors(spoil))
    assert name in str(caught.value)


def test_a_shape_that_the_config_does_not_give_is_named_with_both(change_tensors):
    def spoil(tensors) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(7, 72)

    folder = change_tensors(spoil)
    with pytest.raises(ModelError, match=r"up_proj\.weight has shape \[7, 72\], config\.json makes it \[96, 72\]"):
        _load(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 6}, r"lacks 18 of the weights .*model\.layers\.4"),
        ({"num_hidden_layers": 10**9}, "names 1,000,000,000 layers, and its weights are 39 tensors"),
        ({"hidden_size": 10**9}, "has shape"),
        ({"vocab_size": 65}, r"weight has shape \[64, 72\], config\.json makes it \[65, 72\]"),
        ({"num_attention_heads": 0}, "cannot be loaded|not a config"),
    ],
)
def test_a_config_that_does_not_belong_to_the_weights_is_refused(change_config, values, words):
    with pytest.raises(ModelError, match=words):
        _load(change_config(**values))


def test_extra_tensors_do_no_harm(change_tensors):
    def add(tensors) -> None:
        tensors["extra"] = torch.zeros(3)

    assert _load(change_tensors(add)).new_modules == ()
