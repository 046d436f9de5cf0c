"""Handing the model back: one ordinary folder, or a refusal that says what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from sf_contract.errors import MismatchError, ModelError
from sf_server.main import main
from sf_server.pieces import open_pieces
from sf_server.results.merge_command import write_merged
from sf_server.results.trained import TrainedModel
from sf_server.run_folder import RunFolder
from support.tiny_models import save_tiny_model

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@pytest.fixture
def run_copy(classifying_run, tmp_path) -> Path:
    """The run, whose adapter a test may spoil."""
    copy = tmp_path / "run"
    shutil.copytree(classifying_run.folder.path, copy)
    return copy


def _rewrite(adapter: Path, change) -> None:
    tensors = load_file(adapter / WEIGHTS)
    save_file(change(tensors), adapter / WEIGHTS)


def _as_of_a_wider_model(adapter: Path) -> None:
    _rewrite(adapter, lambda tensors: {name: torch.cat([t, t], dim=-1) for name, t in tensors.items()})


def _as_of_other_layers(adapter: Path) -> None:
    _rewrite(adapter, lambda tensors: {name.replace(".layers.3.", ".layers.7."): t for name, t in tensors.items()})


def _with_a_weight_missing(adapter: Path) -> None:
    _rewrite(adapter, lambda tensors: dict(list(tensors.items())[1:]))


def _with_other_projections(adapter: Path) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, "target_modules": ["c_attn"]}))


def _cut_off(adapter: Path) -> None:
    raw = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(raw[: len(raw) // 2])


def _without_config(adapter: Path) -> None:
    (adapter / CONFIG).write_text("{")


def _gone(adapter: Path) -> None:
    shutil.rmtree(adapter)


@pytest.mark.parametrize(
    "spoil",
    [_as_of_a_wider_model, _as_of_other_layers, _with_a_weight_missing, _with_other_projections, _cut_off,
     _without_config, _gone],
)  # fmt: skip
def test_an_adapter_of_another_base_is_refused_in_one_line_and_leaves_nothing(run_copy, tmp_path, capsys, spoil):
    spoil(run_copy / "adapter")
    out = tmp_path / "merged"
    assert main(["merge", "--run", str(run_copy), "--out", str(out)]) == 14
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Cure:" in line]
    assert "adapter" in line
    assert not out.exists()
    assert list(tmp_path.glob(".merged*")) == []


def test_every_way_to_the_trained_model_refuses_it(run_copy):
    _as_of_other_layers(run_copy / "adapter")
    with pytest.raises(MismatchError, match=r"does not fit llama.*weights differ.*layers\.3"):
        TrainedModel(open_pieces(run_copy))


def test_another_base_model_is_refused_by_its_content(run_copy, tmp_path, capsys):
    other = save_tiny_model("llama", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({name: t + 0.01 for name, t in tensors.items()}, other / "model.safetensors", metadata={"format": "pt"})
    assert main(["merge", "--run", str(run_copy), "--out", str(tmp_path / "merged"), "--model", str(other)]) == 14
    assert "the bundle was made from llama" in capsys.readouterr().err.replace("tiny-llama0", "llama")


@pytest.mark.parametrize("size", ["hidden_size", "vocab_size"])
def test_a_base_model_whose_config_and_weights_disagree_is_refused(tiny_model, tmp_path, size):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, size: config[size] * 2}))
    from sf_contract.manifest import Task
    from sf_model.checkpoint import load_model, open_checkpoint

    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(open_checkpoint(str(folder)), task=Task.CAUSAL_LM, dtype=torch.float32)


def test_the_merged_folder_opens_alone_and_answers_as_the_run_does(classifying_run, tmp_path, texts):
    out = tmp_path / "merged"
    write_merged(classifying_run, out, dtype=torch.float32)
    merged = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    trained = TrainedModel(classifying_run)
    assert merged.config.id2label == {0: "off", 1: "on", 2: "dim"}
    from sf_contract.tokenizer import open_tokenizer
    from sf_server.results.text_front import FrontKind, open_text_front
    from sf_server.training.batch_tensors import decode_to_tensor

    own = open_tokenizer(classifying_run.bundle)
    for bundle in classifying_run.bundles:
        back_end, rows_of = trained.back_end(bundle), open_text_front(classifying_run, FrontKind.FP32, bundle)
        for text in texts[:6]:
            ids = tokenizer(text)["input_ids"]
            assert ids == own.encode(text, special_tokens=True, max_tokens=None)
            with torch.no_grad():
                wanted = merged(torch.tensor([ids])).logits[0]
                found = back_end(*back_end.pad([decode_to_tensor(rows_of(ids))]))[0]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_chat_template_and_generation_settings_come_along(completing_run, tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=0).save_pretrained(model)
    run = tmp_path / "run"
    shutil.copytree(completing_run.folder.path, run)
    out = tmp_path / "merged"
    assert main(["merge", "--run", str(run), "--out", str(out), "--model", str(model), "--dtype", "bf16"]) == 0
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert GenerationConfig.from_pretrained(out).max_new_tokens == 7
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype is torch.bfloat16


def test_a_folder_that_exists_is_not_overwritten(classifying_run, tmp_path, capsys):
    assert main(["merge", "--run", str(classifying_run.folder.path), "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_run_without_an_adapter_says_so(classifying_run, tmp_path, capsys):
    run = tmp_path / "run"
    settings = msgspec.structs.replace(classifying_run.settings, run=str(run))
    RunFolder(run).create(settings, bundle_ids=[bundle.bundle_id for bundle in classifying_run.bundles])
    assert main(["predict", "--run", str(run), "the light"]) == 14
    assert "holds no adapter" in capsys.readouterr().err
