"""EMULATED ARM: comparing devices, and the emulated Python as a program. Nothing is emulated here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from sf_bench.arm import suite_command
from sf_bench.arm.build import current_recipe
from sf_bench.arm.device import compare_samples, edge_arguments
from sf_bench.arm.profiles import PROFILES
from sf_bench.arm.staging import stage_code, write_program
from sf_bench.arm.suite import PATHS, pytest_command, run_suite
from sf_bench.arm.toolkit import Toolkit, ToolMissing, emulator_command
from sf_bench.main import main
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.errors import MismatchError, SelfTestFailed, UsageError
from sf_contract.messages import Role
from sf_server.store.stored import StoredSample
from support.tiny_bundle import HIDDEN, write_tiny_bundle

ROOT = Path(__file__).parents[2]
Stored = tuple[Role, StoredSample]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Its self-test allows a mean error of one per cent."""
    return open_bundle(write_tiny_bundle(tmp_path / "bundle"))


def sample(
    seq: int, *, label: int = 0, tokens: int = 3, factor: float = 1.0, targets: list[int] | None = None
) -> Stored:
    rows = np.random.default_rng(seq).normal(size=(tokens, HIDDEN)).astype(np.float32) * np.float32(factor)
    return Role.TRAIN, StoredSample(
        seq=seq,
        device="any",
        rows=encode_rows(rows, WireCodec.FP32),
        label=label,
        targets=None if targets is None else np.array(targets, dtype=np.int32),
    )


def test_rows_a_little_apart_are_measured_against_the_bundles_limit(bundle: Bundle):
    result = compare_samples([sample(1), sample(2)], [sample(1), sample(2, factor=1.01)], profile="pi4", bundle=bundle)
    assert (result.samples, result.tokens, result.limit) == (2, 6, 0.01)
    assert result.mean_error == pytest.approx(0.005, rel=1e-3)
    assert result.worst_sample == pytest.approx(0.01, rel=1e-3)


def test_rows_further_apart_than_the_bundle_allows_are_refused(bundle: Bundle):
    with pytest.raises(SelfTestFailed, match="on EMULATED pi4 the rows are 2"):
        compare_samples([sample(1)], [sample(1, factor=1.02)], profile="pi4", bundle=bundle)


@pytest.mark.parametrize(
    "other",
    [
        sample(1, label=1, targets=[1, 2, 3]),
        sample(1, tokens=4, targets=[1, 2, 3]),
        sample(1, targets=[1, 2, 4]),
        (Role.VALIDATION, sample(1, targets=[1, 2, 3])[1]),
    ],
    ids=["label", "length", "targets", "role"],
)
def test_what_must_be_equal_is_compared_exactly(bundle: Bundle, other: Stored):
    with pytest.raises(MismatchError, match="in sample 0"):
        compare_samples([sample(1, targets=[1, 2, 3])], [other], profile="pi4", bundle=bundle)


def test_a_missing_sample_is_counted(bundle: Bundle):
    with pytest.raises(MismatchError, match="1 samples where the native run has 2"):
        compare_samples([sample(1), sample(2)], [sample(1)], profile="pi4", bundle=bundle)


def test_the_device_is_started_as_in_the_quickstart(bundle: Bundle, tmp_path: Path):
    arguments = edge_arguments(bundle, tmp_path / "d.jsonl", "pi4", address="tcp://127.0.0.1:1", work=tmp_path)
    assert arguments[:5] == ["run", "--bundle", str(bundle.folder), "--server", "tcp://127.0.0.1:1"]
    assert arguments[-5:] == ["--outbox", str(tmp_path / "outbox-pi4"), "--holdout", "0.1", "--json"]


def test_staged_code_holds_the_packages_asked_for_and_no_bytecode(tmp_path: Path):
    code = stage_code(tmp_path, ("sf_contract", "sf_edge"))
    assert sorted(each.name for each in code.iterdir()) == ["sf_contract", "sf_edge"]
    assert list(code.rglob("*.pyc")) == []


def test_the_emulated_python_is_a_program_and_starts_itself(tmp_path: Path):
    """`env` stands in for the emulator: it starts what follows its options."""
    code = stage_code(tmp_path, ())
    program = write_program(tmp_path / "python 3", ["/usr/bin/env", "A='b c'", "printenv"], code=code)
    run = subprocess.run([program, "SPLITFROZEN_EMULATED_PYTHON", "A"], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [str(program), "'b c'"]
    assert "sys.executable" in (code / "sitecustomize.py").read_text()


def test_tests_see_what_only_tests_need():
    toolkit = Toolkit(Path("/kit"))
    joined = " ".join(emulator_command(toolkit, PROFILES["pi4"], [], code=Path("/code"), with_tests=True))
    assert "PYTHONPATH=/kit/wheels:/code:/kit/test-wheels" in joined
    assert {wheel.partition("==")[0] for wheel in current_recipe().wheels}.isdisjoint({"pytest", "onnx"})


def test_the_suite_leaves_slow_tests_and_judges_none_by_its_time():
    command = pytest_command(Path("/p"), [])
    assert command[:6] == ["/p", "-m", "pytest", "-q", "-m", "not slow"]
    assert "--hypothesis-profile=emulated" in command
    assert command[-len(PATHS) :] == list(PATHS)
    assert pytest_command(Path("/p"), ["tests/x.py"])[-1] == "tests/x.py"
    assert all((ROOT / path).exists() for path in PATHS)


def test_a_folder_without_tests_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="has no tests"):
        run_suite(Toolkit(tmp_path), PROFILES["pi4"], root=tmp_path, chosen=[], say=lambda _: None)


def test_missing_tools_are_an_error_or_a_skip_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def cannot(*_: object, **__: object) -> Toolkit:
        raise ToolMissing("qemu-aarch64 is not installed", cure="install qemu-user")

    monkeypatch.setattr(suite_command, "make_toolkit", cannot)
    assert main(["arm-tests"]) == 2
    assert main(["arm-tests", "--skip-if-missing"]) == 0
    assert "SKIPPED, nothing was tested on emulated ARM: qemu-aarch64 is not installed" in capsys.readouterr().err
