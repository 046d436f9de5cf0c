"""EMULATED ARM: profiles, command lines, and what is said when something is missing. Nothing is emulated here."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sf_bench.arm import build, guest
from sf_bench.arm.build import current_recipe, make_toolkit, missing_tools
from sf_bench.arm.debian import ARCHITECTURE, apt_folders, apt_options, source_lines
from sf_bench.arm.guest import GuestReport, Job, graph_feeds
from sf_bench.arm.profiles import PROFILES, choose_profiles, write_profile_root
from sf_bench.arm.toolkit import (
    MANIFEST_FILE,
    EmulationFailed,
    Toolkit,
    ToolMissing,
    emulator_command,
    open_toolkit,
    run_emulated,
)
from sf_bench.main import main
from sf_contract.errors import UsageError
from support.tiny_bundle import embedding_table, replace_files, write_tiny_bundle

PI5 = PROFILES["pi5"]


def _there(program: str) -> str:
    return f"/usr/bin/{program}"


def test_a_profile_tells_its_part_number_and_dot_product_on_every_core():
    cores = PI5.cpuinfo.strip().split("\n\n")
    assert len(cores) == 4
    assert all("CPU part\t: 0xd0b" in core and "asimddp" in core for core in cores)


def test_boards_without_dot_product_do_not_claim_it():
    assert all("asimddp" not in PROFILES[name].features.split() for name in ("pi3", "pi4"))


def test_unknown_profiles_are_named():
    assert [profile.name for profile in choose_profiles("pi5, pi4,pi5")] == ["pi5", "pi4"]
    with pytest.raises(UsageError, match="'pi9'"):
        choose_profiles("pi5,pi9")


def test_a_profile_root_shows_the_system_but_its_own_proc(tmp_path: Path):
    system = tmp_path / "system"
    for name in ("usr", "lib", "proc"):
        (system / name).mkdir(parents=True)
    root = tmp_path / "roots" / "pi5"
    write_profile_root(root, PI5, system=system)
    assert (root / "usr").resolve() == system / "usr"
    assert (root / "proc" / "cpuinfo").read_text().startswith("processor\t: 0\n")
    assert (root / "sys/devices/system/cpu/possible").read_text() == "0-3\n"
    assert list((system / "proc").iterdir()) == []


def test_the_emulator_gets_processor_root_plugin_and_imports():
    toolkit = Toolkit(Path("/kit"))
    command = emulator_command(toolkit, PI5, ["guest.py"], code=Path("/code"), counts=Path("/counts"))
    joined = " ".join(command)
    assert command[:3] == ["qemu-aarch64", "-cpu", "cortex-a76"]
    assert "-plugin /kit/libinstruction_counter.so,out=/counts -L /kit/roots/pi5" in joined
    assert "PYTHONPATH=/kit/wheels:/code" in joined
    assert command[-3:] == ["/kit/system/usr/bin/python3.11", "-P", "guest.py"]
    assert "-plugin" not in emulator_command(toolkit, PI5, [])


def test_apt_is_kept_away_from_the_system(tmp_path: Path):
    options = apt_options(tmp_path, apt_folders(tmp_path))
    named = dict(option.split("=", 1) for option in options if "=" in option)
    assert named["APT::Architecture"] == ARCHITECTURE
    touched = [
        named[name] for name in ("Dir::State::lists", "Dir::State::status", "Dir::Cache", "Dir::Etc::sourcelist")
    ]
    assert all(path.startswith(str(tmp_path)) for path in touched)


def test_the_archives_are_those_of_the_system_without_backports():
    lines = source_lines("mirror:/x bookworm main\nmirror:/x bookworm main\nmirror:/x bookworm-backports main\n\n")
    assert lines.count("\n") == 1
    assert lines.startswith("deb [arch=arm64 signed-by=")
    assert lines.endswith("] mirror:/x bookworm main\n")


def test_missing_programs_are_named_by_package_and_nothing_is_made(tmp_path: Path):
    with pytest.raises(ToolMissing, match="qemu-user") as caught:
        make_toolkit(tmp_path / "kit", say=lambda _: None, rebuild=False, which=lambda _: None)
    assert "apt-get install qemu-user gcc" in caught.value.cure
    assert not (tmp_path / "kit").exists()
    assert missing_tools(_there, keyring=tmp_path / "none") == ["debian-archive-keyring"]


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "missing_tools", lambda which: [])
    mine = tmp_path / "wheels" / "mine"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(UsageError, match="other things"):
        make_toolkit(tmp_path, say=lambda _: None, rebuild=True)
    assert mine.exists()


def test_a_toolkit_that_is_not_whole_is_none(tmp_path: Path):
    (tmp_path / MANIFEST_FILE).write_text("{}")
    with pytest.raises(ToolMissing, match="no toolkit") as caught:
        open_toolkit(tmp_path, which=_there)
    assert "arm-setup" in caught.value.cure
    with pytest.raises(ToolMissing, match="qemu-aarch64 is not installed"):
        open_toolkit(tmp_path, which=lambda _: None)


def test_a_toolkit_made_from_other_versions_is_out_of_date(tmp_path: Path):
    recipe = current_recipe()
    (tmp_path / MANIFEST_FILE).write_bytes(msgspec.json.encode(recipe))
    assert open_toolkit(tmp_path, which=_there).recipe() == recipe
    assert msgspec.structs.replace(recipe, wheels=("numpy==1",)) != recipe


def test_a_program_that_ends_badly_is_reported_with_its_last_words():
    with pytest.raises(EmulationFailed, match="emulated pi5 ended with 3: the reason"):
        run_emulated(["sh", "-c", "echo noise >&2; echo the reason >&2; exit 3"], PI5)


def test_the_commands_help_and_refuse_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["arm", str(tmp_path), "--repeats", "0"]) == 2
    assert main(["arm", str(tmp_path / "none"), "--profile", "pi5"]) == 13
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert main(["arm", str(bundle), "--tokens", "17"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "more than the 16" in errors[2]


def test_the_guest_runs_the_self_test_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert guest.main([_job(bundle)]) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=GuestReport)
    (self_test,) = report.self_tests
    assert self_test is not None
    assert self_test.passed
    assert self_test.error == pytest.approx(0, abs=1e-6)


def test_the_guest_reports_a_failed_self_test_instead_of_ending(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    replace_files(bundle, vectors=np.ones((7, embedding_table().shape[1]), dtype="<f4").tobytes())
    assert guest.main([_job(bundle)]) == 0
    (self_test,) = json.loads(capsys.readouterr().out)["self_tests"]
    assert self_test["passed"] is False
    assert "mean error" in self_test["problem"]


def test_the_guest_runs_a_graph_without_a_self_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = write_tiny_bundle(tmp_path / "bundle")
    assert guest.main([_job(bundle / "front_end.onnx")]) == 0
    assert json.loads(capsys.readouterr().out)["self_tests"] == [None]


def test_feeds_have_the_asked_length_and_a_fixed_shape_gets_random_content():
    feeds = graph_feeds({"input_ids": ("tensor(int64)", ("b", "t")), "x": ("tensor(uint8)", (2, 3))}, tokens=7)
    assert feeds["input_ids"].tolist() == [[1, 2, 3, 4, 1, 2, 3]]
    assert (feeds["x"].shape, feeds["x"].dtype) == ((2, 3), np.dtype(np.uint8))
    with pytest.raises(UsageError, match="input x"):
        graph_feeds({"x": ("tensor(float)", ("rows", 3))}, tokens=7)


def _job(target: Path) -> str:
    return msgspec.json.encode(Job(targets=(str(target),), tokens=5, repeats=2)).decode()
