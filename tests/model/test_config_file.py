"""Configs: known architectures only, and no code of the model's own is ever run."""

from __future__ import annotations

import pytest

from sf_contract.errors import ModelError
from sf_model.checkpoint import load_model, open_checkpoint, tokenizer_json
from sf_model.config_file import read_config

CODE = "open('{marker}', 'w').close()\nfrom transformers import LlamaConfig as OwnConfig\n"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"model_type": 3}', b"[" * 100_000])
def test_what_is_no_config_is_refused(llama, content):
    (llama / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match="not a Transformers config"):
        read_config(llama)


def test_a_missing_config_is_named(llama):
    (llama / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_config(llama)


def test_an_oversized_config_is_not_read(llama):
    with (llama / "config.json").open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(ModelError, match="1,073,741,824 bytes"):
        read_config(llama)


def test_an_unknown_architecture_is_named(change_config):
    with pytest.raises(ModelError, match="architecture 'mamba9000', which the installed Transformers does not know"):
        read_config(change_config(model_type="mamba9000"))


def test_values_that_do_not_fit_are_explained(change_config):
    with pytest.raises(ModelError, match=r"is not a config of llama: .*hidden_size"):
        read_config(change_config(hidden_size="wide"))


def test_quantized_checkpoints_are_refused_by_method(change_config):
    with pytest.raises(ModelError, match=r"quantized \(gptq\)"):
        read_config(change_config(quantization_config={"quant_method": "gptq", "bits": 4}))


@pytest.fixture
def own_code(llama, tmp_path):
    """A marker that appears when the model's own code runs."""
    marker = tmp_path / "code-was-run"
    for name in ("configuration_own.py", "modeling_own.py", "tokenization_own.py"):
        (llama / name).write_text(CODE.format(marker=marker))
    yield marker
    assert not marker.exists(), "code that came with the model was run"


AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnConfig"}


def test_a_model_that_needs_its_own_code_is_refused(own_code, change_config):
    with pytest.raises(ModelError, match="needs program code of its own"):
        open_checkpoint(str(change_config(model_type="own", auto_map=AUTO_MAP)))


def test_own_code_beside_a_known_architecture_is_ignored(own_code, change_config):
    import torch

    from sf_contract.manifest import Task

    checkpoint = open_checkpoint(str(change_config(auto_map=AUTO_MAP)))
    load_model(checkpoint, task=Task.CAUSAL_LM, dtype=torch.float32)


def test_a_tokenizer_never_brings_code(own_code, llama):
    (llama / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "OwnConfig", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnConfig", null]}}'
    )
    try:
        tokenizer_json(open_checkpoint(str(llama)))
    except ModelError as problem:
        assert "tokenizer" in str(problem)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\x01", b'{"model": {"type": "Magic"}}'])
def test_a_damaged_tokenizer_is_refused(llama, content):
    (llama / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match="has no tokenizer that can be loaded"):
        tokenizer_json(open_checkpoint(str(llama)))


def test_a_folder_without_a_tokenizer_names_the_cure(llama):
    for file in llama.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer") as caught:
        tokenizer_json(open_checkpoint(str(llama)))
    assert "tokenizer.json" in caught.value.cure
