"""The whole comparison on a tiny model: paired exactly, resumable, and refusing what cannot be compared."""

from __future__ import annotations

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import msgspec
import pytest

from sf_bench.accuracy.comparison import check_comparable, choose_arms, open_comparison
from sf_bench.accuracy.settings import AccuracySettings
from sf_bench.main import main
from sf_contract.bundle import open_bundle
from sf_contract.command import EXIT_INTERRUPTED
from sf_contract.errors import AlreadyRunning, MismatchError, SplitFrozenError, UsageError
from sf_contract.manifest import Task, Template
from sf_model.checkpoint import open_checkpoint
from sf_server.run_folder import RunFolder
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.learner import Learner, StepResult

pytestmark = pytest.mark.slow

LABELS = ("off", "on")
SAMPLES = 48


@dataclass(frozen=True)
class _Run:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model("llama")


@pytest.fixture(scope="session")
def export(comparison_bundle):
    """Makes bundles for two classes."""
    return lambda name, *options: comparison_bundle(name, "--labels", ",".join(LABELS), *options)


@pytest.fixture(scope="session")
def data(comparison_data) -> tuple[Path, Path]:
    return comparison_data


@pytest.fixture
def accuracy(data, model, trainer_in_this_process):
    """Runs the command."""

    def run(work: Path, *options: object) -> _Run:
        argv = ["accuracy", "--train", data[0], "--validation", data[1], "--model", model, "--work", work]
        argv += ["--samples", SAMPLES, "--learning-rate", 0.01, *options]
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = main([str(argument) for argument in argv])
        return _Run(code=code, out=out.getvalue(), err=err.getvalue())

    return run


def test_rows_that_are_equal_up_to_rounding_give_the_same_trained_model(tmp_path, export, accuracy):
    """The bundle computes the fp32 rows with another runtime; so phrases, order and new weights are proven to be paired."""
    done = accuracy(
        tmp_path, "--bundle", export("exact", "--quantize", "none", "--wire", "fp32"), "--json", "--fp32-rows"
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    (pair,) = report["pairs"]
    assert (pair["arm"], pair["reference"]) == ("exact", "fp32")
    assert pair["own"]["by_seed"] == pair["whole"]["by_seed"] == [0.0, 0.0, 0.0]
    assert [arm["bytes_per_token"] for arm in report["arms"]] == [72 * 4, 72 * 4]
    assert report["arms"][1]["row_error"]["mean"] < 1e-5
    losses = [json.loads((tmp_path / f"{arm}-seed1.json").read_text())["own"]["loss"] for arm in ("fp32", "exact")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    # Three seeds are three different trainings, or the mean over them would be worth nothing.
    assert len({(tmp_path / f"fp32-seed{seed}.json").read_text() for seed in (0, 1, 2)}) == 3


def test_finished_cells_are_not_computed_again_and_unfinished_ones_are(tmp_path, export, accuracy):
    bundle = export("exact", "--quantize", "none", "--wire", "fp32")
    first = accuracy(tmp_path, "--bundle", bundle, "--arms", "fp32", "--seeds", "0,1")
    assert first.code == 0, first.err
    before = (tmp_path / "fp32-seed0.json").read_bytes()
    (tmp_path / "fp32-seed1.json").unlink()
    second = accuracy(tmp_path, "--bundle", bundle, "--arms", "fp32", "--seeds", "0,1")
    assert second.code == 0, second.err
    assert "seed 0: training" not in second.err
    assert "seed 1: training" in second.err
    assert (tmp_path / "fp32-seed0.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp32-seed0.json", "fp32-seed1.json"]
    assert first.out == second.out


def test_other_settings_in_the_same_folder_are_refused(tmp_path, export, accuracy):
    bundle = export("exact", "--quantize", "none", "--wire", "fp32")
    assert accuracy(tmp_path, "--bundle", bundle, "--arms", "fp32", "--seeds", "0").code == 0
    other = accuracy(tmp_path, "--bundle", bundle, "--arms", "fp32", "--seeds", "0", "--epochs", "2")
    assert other.code == MismatchError.exit_code
    assert "training" in other.err
    assert "--work" in other.err


def test_a_cell_that_another_process_computes_is_left_to_it(tmp_path, export, accuracy):
    bundle = export("exact", "--quantize", "none", "--wire", "fp32")
    with RunFolder(tmp_path / "fp32-seed0").lock():
        done = accuracy(tmp_path, "--bundle", bundle, "--arms", "fp32", "--seeds", "0")
    assert done.code == AlreadyRunning.exit_code
    assert "fp32-seed0" in done.err
    assert not (tmp_path / "fp32-seed0.json").exists()


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been_interrupted(
    tmp_path, export, accuracy, monkeypatch
):
    bundle = export("exact", "--quantize", "none", "--wire", "fp32")
    whole = accuracy(tmp_path / "whole", "--bundle", bundle, "--arms", "fp32", "--seeds", "0")
    assert whole.code == 0, whole.err
    steps = 0

    def stop_once(learner: Learner, batch: BatchTensors, *, rate_factor: float) -> StepResult:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return step(learner, batch, rate_factor=rate_factor)

    step = Learner.step
    monkeypatch.setattr(Learner, "step", stop_once)
    monkeypatch.setattr("sf_bench.accuracy.comparison.CHECKPOINT_EVERY_S", 1e-9)
    assert accuracy(tmp_path / "parted", "--bundle", bundle, "--arms", "fp32", "--seeds", "0").code == EXIT_INTERRUPTED
    again = accuracy(tmp_path / "parted", "--bundle", bundle, "--arms", "fp32", "--seeds", "0")
    assert again.code == 0, again.err
    assert "computing the rows" not in again.err
    found, wanted = (json.loads((tmp_path / name / "fp32-seed0.json").read_text()) for name in ("parted", "whole"))
    assert found["own"] == wanted["own"]
    assert found["steps"] == wanted["steps"]


def test_arms_in_processes_of_their_own_give_the_same_cells(tmp_path, export, accuracy):
    bundles = ["--bundle", export("eight", "--quantize", "none", "--wire", "int8")]
    alone = accuracy(tmp_path / "alone", *bundles, "--seeds", "0", "--json")
    beside = accuracy(tmp_path / "beside", *bundles, "--seeds", "0", "--json", "--jobs", "2")
    assert alone.code == beside.code == 0, alone.err + beside.err
    one, two = json.loads(alone.out), json.loads(beside.out)
    assert one["pairs"] == two["pairs"]
    assert [pair["arm"] + pair["reference"] for pair in one["pairs"]] == ["eightfp32"]
    assert one["arms"][1]["bytes_per_token"] == 72 + 4 * 2
    assert 0.001 < one["arms"][1]["row_error"]["mean"] < 0.03


def test_bundles_that_differ_in_more_than_how_they_compute_rows_are_not_compared(export, model):
    first = open_bundle(export("exact", "--quantize", "none", "--wire", "fp32"))
    checkpoint = open_checkpoint(str(model))
    check_comparable([first, first], checkpoint)
    manifest, replaced = first.manifest, msgspec.structs.replace
    others = {
        "cut": replaced(manifest, geometry=replaced(manifest.geometry, split_layer=1)),
        "labels": replaced(manifest, task=replaced(manifest.task, labels=("no", "yes"))),
        "template": replaced(manifest, task=replaced(manifest.task, template=Template(prompt="Say {text}"))),
        "tokenizer": replaced(manifest, files=tuple(replaced(file, sha256="0" * 64) for file in manifest.files)),
        "weights": replaced(manifest, base_model=replaced(manifest.base_model, weights_sha256="0" * 64)),
    }
    for said, other in others.items():
        with pytest.raises(MismatchError, match=said):
            check_comparable([first, replace(first, manifest=other)], checkpoint)


def test_a_bundle_for_another_task_is_refused_before_anything_is_computed(export, model):
    bundle = open_bundle(export("exact", "--quantize", "none", "--wire", "fp32"))
    task = msgspec.structs.replace(bundle.manifest.task, task=Task.CAUSAL_LM, labels=())
    with pytest.raises(UsageError, match="causal-lm"):
        check_comparable(
            [replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, task=task))], open_checkpoint(str(model))
        )


def test_arms_need_different_names_and_have_to_exist(export):
    bundle = open_bundle(export("exact", "--quantize", "none", "--wire", "fp32"))
    assert list(choose_arms([bundle], wanted=())) == ["fp32", "exact"]
    assert list(choose_arms([bundle], wanted=["exact"])) == ["exact"]
    with pytest.raises(UsageError, match="two arms called 'exact'"):
        choose_arms([bundle, bundle], wanted=())
    with pytest.raises(UsageError, match="no arm 'int4'"):
        choose_arms([bundle], wanted=["int4"])


def test_the_same_seed_gives_every_arm_the_same_inputs_and_nothing_else_in_common_with_another_seed(
    tmp_path, export, data, model
):
    settings = AccuracySettings(
        bundle=(str(export("exact", "--quantize", "none", "--wire", "fp32")),),
        train=str(data[0]),
        validation=str(data[1]),
        work=str(tmp_path),
        model=str(model),
        samples=SAMPLES,
    )
    comparison = open_comparison(settings, say=lambda _: None)
    keys = {(name, seed): comparison.key(arm, seed) for name, arm in comparison.arms.items() for seed in (0, 1)}
    assert keys["fp32", 0] != keys["exact", 0]
    assert msgspec.structs.replace(keys["exact", 0], rows="fp32") == keys["fp32", 0]
    assert keys["fp32", 0].inputs_sha256 != keys["fp32", 1].inputs_sha256


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "a"], "--seeds"),
        (["--samples", "0"], "--samples"),
        (["--samples", "100000"], "phrases"),
        (["--jobs", "0"], "--jobs"),
        (["--bundle", "nowhere"], "nowhere"),
        (["--train", "nowhere.parquet"], "nowhere.parquet"),
    ],
)
def test_mistakes_are_told_in_one_line_with_a_cure(tmp_path, export, accuracy, options, said):
    bundle = export("exact", "--quantize", "none", "--wire", "fp32")
    done = accuracy(tmp_path / "work", "--bundle", bundle, *options)
    last = done.err.strip().splitlines()[-1]
    assert done.code in {kind.exit_code for kind in SplitFrozenError.__subclasses__()}
    assert said in last
    assert "Cure: " in last
    assert not os.path.lexists(tmp_path / "work")
