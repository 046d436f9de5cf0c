"""A model held in bf16 computes exactly what the same model in fp32 computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sf_contract.manifest import Task
from sf_model import precision
from sf_model.blocks import find_blocks, rows_entering, rows_leaving
from sf_model.checkpoint import Checkpoint, load_model, open_checkpoint
from sf_model.front import cut_front
from sf_model.precision import compute_in_fp32, held_in_fp32, load_exact
from support.tiny_models import HIDDEN, VOCABULARY, tiny_tokenizer
from support.tolerances import EXACT

FAMILIES = ("llama", "gpt2", "bert")
IDS = torch.tensor([[3, 9, 4, 17, 30, 5], [8, 8, 2, 1, 0, 0]])
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


@pytest.fixture
def held_in(tiny_model, tmp_path: Path) -> Callable[[str, torch.dtype], Checkpoint]:
    """A tiny checkpoint whose files are of a dtype."""

    def save(family: str, dtype: torch.dtype) -> Checkpoint:
        checkpoint = open_checkpoint(str(tiny_model(family)))
        model = load_model(checkpoint, task=_task(family), dtype=dtype).model
        model.save_pretrained(tmp_path / family)
        tiny_tokenizer().save_pretrained(tmp_path / family)
        return open_checkpoint(str(tmp_path / family))

    return save


def _task(family: str) -> Task | None:
    return None if family == "bert" else Task.CAUSAL_LM


def _frugal(checkpoint: Checkpoint, family: str) -> PreTrainedModel:
    return load_exact(checkpoint, task=_task(family), whole_below_bytes=0)


@torch.no_grad()
def _output(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=MASK)[0]


def _largest_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_what_the_fp32_model_computes(held_in, family, dtype):
    checkpoint = held_in(family, dtype)
    assert checkpoint.own_dtype is dtype
    wanted = _output(load_model(checkpoint, task=_task(family), dtype=torch.float32).model)
    model = _frugal(checkpoint, family)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    for _ in range(2):
        found = _output(model)
        assert found.dtype is torch.float32
        assert _largest_difference(found, wanted) == EXACT
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("family", FAMILIES)
def test_its_front_end_is_the_fp32_models_front_end(held_in, family):
    checkpoint = held_in(family, torch.bfloat16)
    wanted = cut_front(load_model(checkpoint, task=_task(family), dtype=torch.float32).model, 2)
    model = _frugal(checkpoint, family)
    front = cut_front(model, 2)
    held_in_fp32(front)
    assert {parameter.dtype for parameter in front.parameters()} == {torch.float32}
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in front.modules())
    with torch.no_grad():
        assert _largest_difference(front(IDS, MASK), wanted(IDS, MASK)) == EXACT
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_rows_leave_and_enter_in_fp32(held_in):
    checkpoint = held_in("llama", torch.bfloat16)
    model = _frugal(checkpoint, "llama")
    block = find_blocks(model).modules[2]
    with rows_leaving(block) as captured:
        wanted = _output(model)
    assert captured[0].dtype is torch.float32
    with rows_entering(block, captured[0]):
        assert _largest_difference(_output(model), wanted) == EXACT


def test_weights_that_tie_stay_tied_and_nothing_is_held_after_a_failure(tmp_path):
    config = AutoConfig.for_model(
        "llama", vocab_size=VOCABULARY, num_hidden_layers=2, hidden_size=HIDDEN, intermediate_size=96,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    compute_in_fp32(model)
    assert _output(model).dtype is torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(RuntimeError), rows_entering(find_blocks(model).modules[1], torch.zeros(1, 3, HIDDEN + 1)):
        _output(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_copy_works_by_itself(held_in):
    checkpoint = held_in("gpt2", torch.bfloat16)
    model = _frugal(checkpoint, "gpt2")
    wanted = _output(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = torch.zeros_like(parameter)
    assert _largest_difference(_output(twin), wanted) == EXACT


def test_constants_that_are_computed_when_a_model_is_built_are_not_rounded(tmp_path):
    """Gemma multiplies embeddings by the root of the hidden size; in bf16 the root of 72 is off by 0.2 %."""
    config = AutoConfig.for_model(
        "gemma2", vocab_size=VOCABULARY, num_hidden_layers=3, hidden_size=HIDDEN, intermediate_size=96,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    wanted = _output(load_model(checkpoint, task=Task.CAUSAL_LM, dtype=torch.float32).model)
    assert _largest_difference(_output(_frugal(checkpoint, "gemma2")), wanted) == EXACT


def test_what_cannot_be_computed_block_by_block_is_loaded_in_fp32(held_in, monkeypatch):
    checkpoint = held_in("llama", torch.bfloat16)
    monkeypatch.setattr(precision, "compute_in_fp32", lambda model: None)
    said: list[str] = []
    model = load_exact(checkpoint, task=Task.CAUSAL_LM, whole_below_bytes=0, say=said.append)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert said == ["llama needs all of its weights in fp32"]


def test_small_and_fp32_checkpoints_are_simply_fp32(held_in, tiny_model):
    for checkpoint in (held_in("llama", torch.bfloat16), open_checkpoint(str(tiny_model("llama")))):
        model = load_exact(checkpoint, task=Task.CAUSAL_LM)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert not any(part._forward_pre_hooks for part in model.modules())
