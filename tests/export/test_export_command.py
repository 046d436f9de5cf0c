"""`sf-export` from a checkpoint to a bundle that runs, with tiny models."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from sf_contract.bundle import open_bundle
from sf_contract.codec import WireCodec
from sf_contract.errors import DiskFull, ErrorBudgetExceeded
from sf_contract.front_end import open_front_end, run_self_test
from sf_contract.manifest import Task
from sf_contract.tokenizer import open_tokenizer
from sf_export import bundle_writer
from sf_export.main import main

pytestmark = pytest.mark.slow


@pytest.fixture
def export(tiny_model, sentences_file: Path, tmp_path: Path):
    """Export a tiny model to `tmp_path / name`; gives the exit code."""

    def run(name: str, *options: str, family: str = "llama") -> int:
        fixed = ["--split-layer", "2", "--max-tokens", "32", "--threads", "1", "--calibration", str(sentences_file)]
        labels = [] if "causal-lm" in options else ["--labels", "on,off"]
        model = ["--model", str(tiny_model(family))]
        return main([*fixed, *model, *labels, "--out", str(tmp_path / name), *options])

    return run


def test_a_bundle_opens_passes_its_self_test_and_says_what_it_is(
    export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("bundle") == 0
    said = capsys.readouterr()
    bundle = open_bundle(tmp_path / "bundle")
    manifest = bundle.manifest
    assert said.out.split() == [str(tmp_path / "bundle"), bundle.bundle_id]
    for expected in ("1/5 loading", "5/5", "sf-edge run --bundle", "sf-server train --bundle", "tokens/s"):
        assert expected in said.err
    assert "arning" not in said.err
    assert run_self_test(bundle, open_front_end(bundle)) <= manifest.self_test.max_mean_error
    assert manifest.task.labels == ("on", "off")
    assert (manifest.geometry.split_layer, manifest.geometry.layers, manifest.geometry.max_tokens) == (2, 4, 32)
    assert manifest.quantization.error.mean <= 0.05
    assert manifest.quantization.error.loss_fp32 is not None
    assert manifest.quantization.choices[0].scheme == "int8-per-row"
    assert all(choice.added_error is not None for choice in manifest.quantization.choices[1:])
    token_ids = open_tokenizer(bundle).encode("light on", special_tokens=True, max_tokens=None)
    rows = open_front_end(bundle).run([token_ids, token_ids[:1]])
    assert [encoded.rows.shape for encoded in rows] == [(2, 72), (1, 72)]
    assert rows[0].scales.shape == (2, 2)


def test_the_same_command_gives_the_same_bundle(export, tmp_path: Path) -> None:
    assert export("one") == export("two") == 0
    assert open_bundle(tmp_path / "one").bundle_id == open_bundle(tmp_path / "two").bundle_id
    graph = (tmp_path / "one" / "front_end.onnx").read_bytes()
    for trace in (b"/site-packages/", str(Path.cwd()).encode(), str(tmp_path).encode(), b"stack_trace"):
        assert trace not in graph


def test_nothing_quantized_and_fp32_rows_are_as_good_as_exact(
    export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--quantize", "none", "--wire", "fp32", "--task", "causal-lm", "--completion-template", " {answer}")
    assert export("bundle", *options, "--json", family="gpt2") == 0
    manifest = open_bundle(tmp_path / "bundle").manifest
    printed = json.loads(capsys.readouterr().out)
    assert printed["bundle_id"] == manifest.bundle_id
    assert printed["error"]["worst"] < 1e-4
    assert abs(printed["loss"]["fp32"] - printed["loss"]["quantized"]) < 1e-4
    assert set(printed["schemes"].values()) == {"fp32"}
    assert manifest.wire_codec is WireCodec.FP32
    assert manifest.task.task is Task.CAUSAL_LM
    assert manifest.task.template.completion == " {answer}"
    assert manifest.task.end_token_id == 2


def test_an_encoder_is_measured_without_a_language_model_loss(export, tmp_path: Path) -> None:
    assert export("bundle", "--wire", "fp16", family="bert") == 0
    error = open_bundle(tmp_path / "bundle").manifest.quantization.error
    assert error.loss_fp32 is None
    assert error.loss_quantized is None
    assert error.accuracy_quantized is None


def test_several_cuts_share_one_load_and_are_the_bundles_that_single_exports_make(
    export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("both", "--split-layer", "3,1,3") == 0
    said = capsys.readouterr()
    assert said.err.count("loading") == 1
    folders = [tmp_path / "both" / "cut1", tmp_path / "both" / "cut3"]
    assert said.out.split()[::2] == [str(folder) for folder in folders]
    assert [open_bundle(folder).manifest.geometry.split_layer for folder in folders] == [1, 3]
    assert export("single", "--split-layer", "3") == 0
    assert open_bundle(tmp_path / "single").bundle_id == open_bundle(folders[1]).bundle_id


def test_a_4_bit_embedding_and_4_bit_rows_make_a_bundle_that_passes_its_self_test(export, tmp_path: Path) -> None:
    assert export("small", "--embedding", "int4", "--wire", "int4", "--max-error", "0.5") == 0
    small = open_bundle(tmp_path / "small")
    assert small.manifest.quantization.choices[0].scheme == "int4-rotated-per-row"
    assert small.manifest.wire_codec is WireCodec.INT4
    assert 0 < run_self_test(small, open_front_end(small)) <= small.manifest.self_test.max_mean_error


def test_above_the_error_budget_nothing_is_written(export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.iterdir())
    assert export("bundle", "--max-error", "0.0005") == ErrorBudgetExceeded.exit_code
    line = capsys.readouterr().err.splitlines()[-1]
    assert "mean error at the cut" in line
    assert "mlp.down_proj fp16-weights" in line
    assert "0.05%" in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_ends_with_one_line_and_nothing_on_the_disk(
    export, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(bundle_writer, "write_file", full)
    assert export("bundle", "--quantize", "int8") == DiskFull.exit_code
    assert "no room left" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_inspect_and_verify_read_a_bundle_and_verify_notices_a_changed_byte(
    export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("bundle", "--quantize", "int8") == 0
    capsys.readouterr()
    folder = tmp_path / "bundle"
    assert main(["inspect", str(folder)]) == 0
    assert "int8-dynamic" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"]["selftest.f32"] == (folder / "selftest.f32").stat().st_size
    assert main(["verify", str(folder)]) == 0
    assert "is whole" in capsys.readouterr().out
    assert main(["verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["self_test_error"] < 0.05
    rows = np.fromfile(folder / "selftest.f32", dtype="<f4")
    rows[0] += 1
    rows.tofile(folder / "selftest.f32")
    assert main(["verify", str(folder)]) != 0
    assert "was changed" in capsys.readouterr().err
