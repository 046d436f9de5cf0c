"""Models that cannot be cut are refused with the reason, whichever kind of `sf-export families` they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from sf_contract.errors import ModelError
from sf_contract.manifest import Task
from sf_export.families import REFUSED
from sf_export.main import main
from sf_model.blocks import find_blocks
from sf_model.checkpoint import load_model, open_checkpoint
from sf_model.config_view import check_task_class, position_limit, view_config
from sf_model.front import cut_front
from sf_model.precision import compute_in_fp32
from sf_model.probe import check_cut
from support.tiny_models import HIDDEN, LAYERS, VOCABULARY, randomize, tiny_config, tiny_tokenizer

CUT = 2
_LAYERED: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_attention_heads": 4,
}
_GEMMA = _LAYERED | {
    "num_key_value_heads": 2,
    "head_dim": 18,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
_SIZES: dict[str, dict[str, Any]] = {
    "albert": _LAYERED | {"embedding_size": 48},
    "convbert": _LAYERED | {"embedding_size": 48},
    "mobilebert": _LAYERED | {"embedding_size": 48, "intra_bottleneck_size": 36},
    "fnet": _LAYERED,
    "longformer": _LAYERED | {"attention_window": [8] * LAYERS},
    "funnel": {"block_sizes": [2, 2], "d_model": HIDDEN, "n_head": 4, "d_head": 18, "d_inner": 96}
    | {"architectures": ["FunnelModel"]},
    "xlm": {"n_layers": LAYERS, "emb_dim": HIDDEN, "n_heads": 4},
    "xlnet": {"n_layer": LAYERS, "d_model": HIDDEN, "n_head": 4, "d_inner": 96},
    "gemma3n_text": _GEMMA
    | {
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * LAYERS,
        "num_kv_shared_layers": 1,
    },
    "gemma4_text": _GEMMA | {"num_kv_shared_layers": 1},
}
"""Of those that only their structure or a run gives away; the others are refused by their config as it is."""

_REASONS = {
    "encoder-decoders": "encoder-decoder",
    "recurrent and hybrid models": "is recurrent",
    "mixtures of experts": "mixture of experts",
    "attention whose form depends on the length": "block_sparse",
    "one block used for all layers": "share one block",
    "layers in several lists": "expected one list",
    "hidden states that are not one row per token": "one row of 72 channels per token",
    "layers that read more than the layer before": "cannot be run in two parts|share state",
    "models that mix padding into the text": "when it is padded",
    "models of something else than text": "does not describe a text model",
}
_EXAMPLES = [pytest.param(example, _REASONS[kind.kind], id=example) for kind in REFUSED for example in kind.examples]


def _config(family: str, **changes: Any) -> PretrainedConfig:
    return AutoConfig.for_model(
        family, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=2, eos_token_id=2, **_SIZES[family] | changes
    )


def _random_model(config: PretrainedConfig, kind: Any = AutoModel) -> PreTrainedModel:
    torch.manual_seed(5)
    return randomize(kind.from_config(config)).eval().requires_grad_(False)


def _cut(model: PreTrainedModel) -> None:
    cut_front(model, CUT)
    check_cut(model, CUT)


@pytest.mark.parametrize(("example", "reason"), _EXAMPLES)
def test_every_kind_that_is_listed_as_refused_is_refused_with_its_reason(example: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        if example in _SIZES:
            _cut(_random_model(_config(example)))
        else:
            view_config(AutoConfig.for_model(example))
    assert caught.value.cure


def test_keys_and_values_that_cross_the_cut_are_seen_without_per_layer_embeddings_too() -> None:
    config = _config("gemma4_text", hidden_size_per_layer_input=0, num_kv_shared_layers=2)
    with pytest.raises(ModelError, match="gemma4_text"):
        _cut(_random_model(config))


def test_a_layer_that_reads_the_embeddings_again_is_seen(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As models with a value residual do: something from below the cut reaches a layer above it on the side."""
    model = load_model(open_checkpoint(str(tiny_model("llama"))), task=None, dtype=torch.float32).model
    blocks = list(find_blocks(model).modules)
    original = type(blocks[0]).forward
    first: list[torch.Tensor] = []

    def forward(self, hidden_states, **options):
        if self is blocks[0]:
            first[:] = [hidden_states]
        side = first[0] if self is blocks[-1] and first and first[0].shape == hidden_states.shape else 0
        return original(self, hidden_states + side, **options)

    monkeypatch.setattr(type(blocks[0]), "forward", forward)
    cut_front(model, CUT)
    with pytest.raises(ModelError, match="share state with layers below it"):
        check_cut(model, CUT)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_model_held_in_bf16_that_computes_in_fp32_is_no_reason_to_refuse(family: str) -> None:
    model = _random_model(tiny_config(family)).bfloat16()
    for name, constant in model.named_buffers():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, constant.float())
    compute_in_fp32(model)
    _cut(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_model_whose_code_fails_under_the_knife_is_refused_and_not_a_traceback(tiny_model, monkeypatch) -> None:
    model = load_model(open_checkpoint(str(tiny_model("llama"))), task=None, dtype=torch.float32).model

    def forward(self, hidden_states, **options):
        raise KeyError("memory")

    monkeypatch.setattr(type(find_blocks(model).modules[0]), "forward", forward)
    with pytest.raises(ModelError, match="KeyError: 'memory'"):
        cut_front(model, CUT)


def test_a_task_without_a_class_is_refused_with_the_task_that_has_one() -> None:
    with pytest.raises(ModelError, match="granite for text-classification") as caught:
        check_task_class(tiny_config("granite"), Task.TEXT_CLASSIFICATION)
    assert "--task causal-lm" in caught.value.cure


def test_positions_end_where_long_rope_changes_its_frequencies() -> None:
    rotary = {"type": "longrope", "short_factor": [1.0] * 9, "long_factor": [2.0] * 9}
    sizes = _LAYERED | {"max_position_embeddings": 96, "pad_token_id": 0}
    long = AutoConfig.for_model("phi3", rope_scaling=rotary, original_max_position_embeddings=24, **sizes)
    assert position_limit(long) == 24
    assert position_limit(AutoConfig.for_model("phi3", **sizes)) == 96


@pytest.mark.parametrize(
    ("family", "reason"), [("gemma4_text", "cannot be run in two parts"), ("fnet", "when it is padded")]
)
def test_the_command_refuses_before_anything_long_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str, reason: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    folder = tmp_path / "model"
    kind = AutoModelForCausalLM if family == "gemma4_text" else AutoModel
    _random_model(_config(family), kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    options = ["--task", "causal-lm"] if family == "gemma4_text" else ["--labels", "a,b"]
    assert main(["--split-layer", "2", "--model", str(folder), "--max-tokens", "64", *options]) == ModelError.exit_code
    told = capsys.readouterr().err
    assert reason in told.splitlines()[-1]
    assert "ONNX graph" not in told
    assert list(place.iterdir()) == []


def test_the_command_refuses_a_task_without_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(tiny_config("granite")).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert main(["--split-layer", "2", "--model", str(folder), "--labels", "a,b"]) == ModelError.exit_code
    assert "no class that uses granite for text-classification" in capsys.readouterr().err.splitlines()[-1]
