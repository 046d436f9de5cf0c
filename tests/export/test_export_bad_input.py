"""What a person gets wrong: one line with cause and cure, an exit code of its own, nothing on the disk."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sf_contract.errors import BundleError, DataError, ModelError, SplitLayerError, UsageError
from sf_export.main import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `sf-export` in an empty folder: exit code and the line that names the error; checks that nothing was left."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run_it(*argv: str) -> tuple[int, str]:
        code = main(argv)
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert lines, "nothing was said"
        assert "Traceback" not in captured.err
        assert captured.out == ""
        assert list(place.iterdir()) == []
        return code, lines[-1]

    return run_it


@pytest.fixture
def llama(tiny_model) -> Path:
    """A tiny model folder; tests that damage it copy it first."""
    return tiny_model("llama")


@pytest.fixture
def damaged(llama: Path, tmp_path: Path) -> Path:
    """A copy of the model folder to damage."""
    return Path(shutil.copytree(llama, tmp_path / "damaged"))


GOOD = ("--split-layer", "2", "--labels", "a,b", "--max-tokens", "64")


def test_a_split_layer_outside_the_model_names_the_range(run: Run, llama: Path) -> None:
    for split_layer in ("0", "-1", "4", "99"):
        code, line = run(f"--split-layer={split_layer}", "--labels", "a,b", "--model", str(llama))
        assert code == SplitLayerError.exit_code
        assert "from 1 to 3" in line


def test_a_split_layer_that_is_missing_or_no_number_is_a_usage_error(run: Run) -> None:
    for argv in (["--labels", "a,b"], ["--split-layer", "four"], ["--split-layer", "2.5"]):
        code, line = run(*argv)
        assert code == UsageError.exit_code
        assert "split" in line


def test_an_unknown_model_is_named(run: Run) -> None:
    code, line = run(*GOOD, "--model", "nobody/no-such-model")
    assert code == ModelError.exit_code
    assert "nobody/no-such-model" in line


def test_files_that_only_look_like_gguf_are_refused(run: Run, tmp_path: Path) -> None:
    contents = {
        "empty.gguf": b"",
        "text.gguf": b"this is not a model",
        "version.gguf": b"GGUF" + struct.pack("<I", 99),
        "truncated.gguf": b"GGUF" + struct.pack("<IQQ", 3, 5, 5),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        code, line = run(*GOOD, "--model", str(tmp_path / name))
        assert code == ModelError.exit_code
        assert name in line
    assert run(*GOOD, "--model", str(tmp_path / "missing.gguf"))[0] == ModelError.exit_code
    cache = tmp_path / "cache" / "splitfrozen"
    assert not cache.exists() or list(cache.iterdir()) == []


def test_folders_without_config_weights_or_tokenizer_are_refused(run: Run, damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(*GOOD, "--model", str(tmp_path / "empty"))[0] == ModelError.exit_code
    for pattern, says in (("tokenizer*", "tokenizer"), ("*.safetensors", "safetensors"), ("config.json", "config")):
        for file in damaged.glob(pattern):
            file.unlink()
        code, line = run(*GOOD, "--model", str(damaged))
        assert code == ModelError.exit_code
        assert says in line


def test_corrupt_weights_are_refused(run: Run, damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:2000], whole[:-1], b"", b"text", bytes(len(whole))):
        weights.write_bytes(content)
        code, line = run(*GOOD, "--model", str(damaged))
        assert code == ModelError.exit_code
        assert "model.safetensors" in line
        assert "is not a whole safetensors file" in line


def test_weights_that_are_missing_or_no_numbers_are_refused(run: Run, damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    tensors = load_file(weights)
    spoiled = tensors["model.layers.3.mlp.up_proj.weight"].clone()
    spoiled[0, 0] = float("nan")
    for changed, says in (
        ({**tensors, "model.layers.3.mlp.up_proj.weight": spoiled}, "not finite"),
        ({name: tensor for name, tensor in tensors.items() if ".layers.0." not in name}, "lacks 9 of the weights"),
        ({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, "lm_head.weight"),
        ({**tensors, "model.norm.weight": spoiled[:, 1].clone()}, "has shape"),
    ):
        save_file(changed, weights, metadata={"format": "pt"})
        code, line = run(*GOOD, "--model", str(damaged))
        assert code == ModelError.exit_code
        assert says in line


def test_pickles_own_code_and_unknown_architectures_are_refused(run: Run, damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    for changes, says in (
        ({"model_type": "mamba9000"}, "does not know"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, "is never run"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized (awq)"),
    ):
        (damaged / "config.json").write_text(json.dumps({**config, **changes}))
        code, line = run(*GOOD, "--model", str(damaged))
        assert code == ModelError.exit_code
        assert says in line
    (damaged / "config.json").write_text(json.dumps(config))
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    code, line = run(*GOOD, "--model", str(damaged))
    assert code == ModelError.exit_code
    assert "pytorch_model.bin" in line


def test_an_encoder_decoder_is_refused(run: Run, damaged: Path) -> None:
    (damaged / "config.json").write_text(
        json.dumps({"model_type": "t5", "num_layers": 4, "d_model": 32, "is_encoder_decoder": True, "vocab_size": 64})
    )
    code, line = run(*GOOD, "--model", str(damaged))
    assert code == ModelError.exit_code
    assert "encoder-decoder" in line


def test_causal_lm_needs_a_language_model_head(run: Run, tiny_model) -> None:
    code, line = run("--split-layer", "2", "--task", "causal-lm", "--model", str(tiny_model("bert")))
    assert code == ModelError.exit_code
    assert "no language-model head" in line


def test_calibration_text_that_is_missing_or_empty_is_refused(run: Run, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n \n\t\n")
    (tmp_path / "zeros.txt").write_bytes(b"text\0text")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "other.jsonl").write_text('{"sentence": "x"}\n')
    for name in ("empty.txt", "blank.txt", "zeros.txt", "binary", "other.jsonl", "missing.jsonl"):
        code, line = run(*GOOD, "--model", str(llama), "--calibration", str(tmp_path / name))
        assert code == DataError.exit_code
        assert name in line


def test_labels_that_do_not_fit_the_task_are_refused_before_the_model_is_looked_at(run: Run) -> None:
    for argv in (["--labels", "a"], ["--labels", "a,a"], [], ["--task", "causal-lm", "--labels", "a,b"]):
        code, line = run("--split-layer", "2", "--model", "nobody/no-such-model", *argv)
        assert code == UsageError.exit_code
        assert "label" in line


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sequences_longer_than_the_models_positions_are_refused(run: Run, tiny_model, family: str) -> None:
    code, line = run(
        "--split-layer", "2", "--labels", "a,b", "--model", str(tiny_model(family)), "--max-tokens", "9999"
    )
    assert code == UsageError.exit_code
    assert "--max-tokens 9999" in line


def test_unknown_settings_and_wrong_values_are_all_named(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "export.toml"
    config.write_text('split_layers = 4\nwire = "int3"\nmax_error = -1\n')
    code, line = run("--config", str(config), "--quantize", "magic")
    assert code == UsageError.exit_code
    for word in ("split_layers", "split_layer", "wire", "max_error", "--quantize"):
        assert word in line
    assert run("--split-layer", "2", "--no-such-option")[0] == UsageError.exit_code
    assert run("--config", str(tmp_path / "missing.toml"))[0] == UsageError.exit_code


def test_a_target_that_is_no_bundle_is_refused(run: Run, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    code, line = run(*GOOD, "--model", str(llama), "--out", str(tmp_path / "mine"))
    assert code == UsageError.exit_code
    assert "is not a bundle" in line
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "text"


def test_errors_are_json_for_machines(run: Run, llama: Path) -> None:
    code, line = run("--split-layer", "9", "--labels", "a,b", "--model", str(llama), "--json")
    assert json.loads(line)["exit_code"] == code == SplitLayerError.exit_code


def test_inspect_and_verify_refuse_what_is_no_bundle(run: Run, tmp_path: Path) -> None:
    for command in ("inspect", "verify"):
        assert run(command, str(tmp_path / "missing"))[0] == BundleError.exit_code
        assert run(command)[0] == UsageError.exit_code


def test_help_and_version_do_not_load_the_heavy_libraries() -> None:
    program = (
        "import sys\n"
        "from sf_export.main import main\n"
        "try:\n    main([sys.argv[1]])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
    )
    for option in ("--help", "--version"):
        subprocess.run([sys.executable, "-c", program, option], check=True, capture_output=True)
