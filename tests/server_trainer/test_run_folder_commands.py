"""`sf-server` up to the point where processes start, and `sf-server devices`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sf_contract.errors import UsageError
from sf_contract.limits import MIB
from sf_server.main import COMMANDS, main
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings, with_absolute_paths
from sf_server.store.devices_command import device_table
from sf_server.store.store import Store
from sf_server.store.stored import DeviceSummary
from sf_server.supervision.train_command import read_settings

NEEDED = ["--bundle", "b", "--run", "r", "--expect-devices", "2"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_help_of_train_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all("--" + name.replace("_", "-") in text for name in TrainSettings.__struct_fields__)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("splitfrozen ")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "no command given"),
        (["trian"], "did you mean train?"),
        (["train"], "missing setting"),
        (["train", *NEEDED, "--epoch", "3"], "unrecognized arguments: --epoch"),
        (["train", *NEEDED, "--epochs", "0"], "--epochs = 0"),
        (["train", *NEEDED, "--epochs", "many"], "invalid int value"),
        (["train", *NEEDED, "--dtype", "fp8"], "invalid choice"),
        (["train", *NEEDED, "--insecure", "--key", "server.key"], "--insecure receives in the clear"),
        (["train", "--bundle", "b", "--run", "r"], "neither of --expect-devices and --expect-samples"),
        (["train", "--run", "nowhere", "--resume"], "there is no run in nowhere"),
        (["devices"], "--run"),
        (["devices", "--run", "nowhere"], "there is no run in nowhere"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_a_cure(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert named in line
    assert "Cure:" in line


def test_a_missing_bundle_has_its_own_exit_code_and_makes_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "--bundle", str(tmp_path / "none"), "--run", str(tmp_path / "run"), "--expect-devices", "1"]
    assert main([*argv, "--json"]) == 13
    assert "no bundle folder" in json.loads(capsys.readouterr().err)["error"]
    assert not (tmp_path / "run").exists()


def test_a_run_that_exists_is_not_overwritten(
    tmp_path: Path, make_bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    settings = TrainSettings(bundle=str(bundle.folder), run=str(tmp_path / "run"), expect_devices=1)
    RunFolder(tmp_path / "run").create(settings, bundle_ids=(bundle.bundle_id,))
    argv = ["train", "--bundle", str(bundle.folder), "--run", str(tmp_path / "run"), "--expect-devices", "1"]
    assert main(argv) == 2
    assert "there is a run" in capsys.readouterr().err
    assert main([*argv, "--resume", "--seed", "4"]) == 14
    assert "--seed 0 -> 4" in capsys.readouterr().err


def test_a_run_in_use_has_its_own_exit_code(
    tmp_path: Path, make_bundle: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sf_server.supervision.train_command.LOCK_WAIT_S", 0)
    argv = ["train", "--bundle", str(make_bundle().folder), "--run", str(tmp_path / "run"), "--expect-devices", "1"]
    with RunFolder(tmp_path / "run").lock():
        assert main(argv) == 20
    assert "another sf-server train" in capsys.readouterr().err


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text('epochs = 5\nseed = 8\nlora-targets = ["q_proj"]\nlora_alpha = 32\n')
    settings = read_settings([*NEEDED, "--config", str(config), "--seed", "9", "--no-validate"])
    assert (settings.epochs, settings.seed, settings.lora_targets, settings.lora_alpha) == (5, 9, ("q_proj",), 32)
    assert (settings.validate, settings.batch_tokens) == (False, 2048)


def test_unknown_and_wrong_settings_of_a_file_are_named_all_at_once(tmp_path: Path) -> None:
    config = tmp_path / "train.toml"
    config.write_text("epoch = 5\nseed = 'eight'\n")
    with pytest.raises(UsageError, match=r"unknown setting epoch \(did you mean epochs\?\).*seed = 'eight'"):
        read_settings([*NEEDED, "--config", str(config)])


def test_lists_are_given_with_commas() -> None:
    assert read_settings([*NEEDED, "--lora-targets", "q_proj, v_proj"]).lora_targets == ("q_proj", "v_proj")


def _run_with(tmp_path: Path, **settings: Any) -> str:
    path = tmp_path / "run"
    made = TrainSettings(bundle="/b", run=str(path), **settings)
    RunFolder(path).create(made, bundle_ids=("b" * 64,))
    return str(path)


def test_a_resumed_run_keeps_the_settings_that_are_not_given(tmp_path: Path) -> None:
    run = _run_with(tmp_path, expect_samples=100, lora_rank=16, epochs=9, json=True)
    settings = read_settings(["--run", run, "--resume", "--threads", "2"])
    assert (settings.lora_rank, settings.epochs, settings.expect_samples, settings.threads) == (16, 9, 100, 2)
    assert (settings.bundle, settings.resume, settings.json) == ("/b", True, False)


def test_a_resumed_run_can_expect_something_else(tmp_path: Path) -> None:
    run = _run_with(tmp_path, expect_samples=100)
    settings = read_settings(["--run", run, "--resume", "--expect-devices", "3"])
    assert (settings.expect_devices, settings.expect_samples) == (3, None)


def test_a_settings_file_can_resume_a_run(tmp_path: Path) -> None:
    run = _run_with(tmp_path, expect_devices=1, epochs=9)
    config = tmp_path / "train.toml"
    config.write_text(f"run = {json.dumps(run)}\nresume = true\nthreads = 2\n")
    settings = read_settings(["--config", str(config)])
    assert (settings.epochs, settings.threads, settings.resume) == (9, 2, True)


def test_paths_do_not_depend_on_the_working_directory_and_hub_ids_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    plain = TrainSettings(bundle="b", run="r", model="local")
    settings = with_absolute_paths(plain)
    assert (settings.bundle, settings.run) == (os.fspath(tmp_path / "b"), os.fspath(tmp_path / "r"))
    assert settings.model == os.fspath(tmp_path / "local")
    hub = msgspec.structs.replace(plain, model="openai-community/gpt2")
    assert with_absolute_paths(hub).model == "openai-community/gpt2"


@pytest.mark.parametrize(
    ("former", "given", "kept"),
    [
        ({"insecure": True}, [], {"insecure": True, "key": None}),
        ({"insecure": True}, ["--key", "k"], {"insecure": False, "key": "k"}),
        ({"key": "k", "authorized": "a"}, [], {"key": "k", "authorized": "a"}),
        ({"key": "k", "authorized": "a"}, ["--insecure"], {"key": None, "authorized": None, "insecure": True}),
        ({"max_connections": 9, "device_mb_per_s": 0.5}, [], {"max_connections": 9, "device_mb_per_s": 0.5}),
    ],
)
def test_a_resumed_run_may_change_between_keys_and_none(
    tmp_path: Path, former: dict[str, Any], given: list[str], kept: dict[str, Any]
) -> None:
    run = _run_with(tmp_path, expect_devices=1, bind="tcp://*:5555", **former)
    settings = read_settings(["--run", run, "--resume", *given])
    assert {name: getattr(settings, name) for name in kept} == kept


@pytest.fixture
def train(make_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`sf-server train` on a new run, without its two processes."""
    monkeypatch.setattr("sf_server.supervision.train_command.supervise", lambda **_: 0)
    bundle = make_bundle()
    needed = ["--bundle", str(bundle.folder), "--run", str(tmp_path / "run"), "--expect-devices", "1"]
    return lambda *more: main(["train", *needed, *more])


def test_the_first_encrypted_start_makes_the_runs_key_and_later_ones_keep_it(train: Any, tmp_path: Path) -> None:
    assert train("--bind", "tcp://0.0.0.0:5555") == 0
    key = (tmp_path / "run" / "server.key").read_text()
    assert train("--resume") == 0
    assert (tmp_path / "run" / "server.key").read_text() == key
    assert (tmp_path / "run" / "authorized").is_dir()


def test_keys_may_be_put_into_the_folder_before_there_is_a_run(train: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "authorized").mkdir(parents=True, mode=0o700)
    assert train("--bind", "tcp://0.0.0.0:5555") == 0


def test_on_loopback_and_with_consent_nothing_is_made(train: Any, tmp_path: Path) -> None:
    assert train() == 0
    assert train("--resume", "--bind", "tcp://0.0.0.0:5555", "--insecure") == 0
    assert not (tmp_path / "run" / "server.key").exists()


def test_a_key_that_cannot_be_used_leaves_no_run_behind(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--key", str(tmp_path / "none.key")) == 2
    assert "there is no key" in capsys.readouterr().err
    assert train("--bind", "tcp://0.0.0.0:5555") == 0


@pytest.fixture
def run_with_devices(tmp_path: Path, make_sample: Any) -> str:
    run = _run_with(tmp_path, expect_devices=1)
    with Store.open(RunFolder(Path(run)).store_path, max_bytes=8 * MIB) as store:
        for name, outbox in (("phone", "1" * 32), ("tablet", "2" * 32)):
            sender = {"device": name, "outbox": outbox, "bundle_id": "b" * 64}
            store.note_hello(**sender, self_test_error=0.01, waiting_samples=0, now_s=1.0)
            store.add(**sender, samples=[make_sample(0), make_sample(1)])
        store.note_traffic(outbox="1" * 32, bytes_in=1_234_567, bytes_out=99, malformed=5, now_s=2.0)
        store.note_rejected(outbox="1" * 32, samples=3)
        store.note_finished(outbox="1" * 32, skipped_rows=4, now_s=2.0)
    return run


def test_devices_are_listed_as_a_table(run_with_devices: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--run", run_with_devices]) == 0
    headings, phone, tablet = capsys.readouterr().out.splitlines()
    assert headings.split()[:4] == ["device", "cut", "outbox", "samples"]
    assert phone.split()[:13] == ["phone", "-", "11111111", "2", "0", "3", "5", "4", "1.23", "MB", "99", "B", "yes"]
    assert "no" in tablet.split()


def test_what_holds_a_device_back_is_listed_with_its_age() -> None:
    summary = DeviceSummary(
        device="pi-3", outbox="1" * 32, bundle_id="b" * 64, self_test_error=0.0, first_seen_s=0.0, last_seen_s=100.0,
        bytes_in=0, bytes_out=0, samples=0, repeats=0, rejected=0, malformed=0, skipped_rows=0, finished=False,
        activity="paused: battery at 12 %", activity_s=97.0,
    )  # fmt: skip
    _, line = device_table([summary], cuts={}, now_s=104.0).splitlines()
    assert line.endswith("4 s ago  paused: battery at 12 % (7 s ago)")
    _, line = device_table([replace(summary, finished=True)], cuts={}, now_s=104.0).splitlines()
    assert line.endswith("4 s ago")


def test_devices_are_listed_as_json(run_with_devices: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--run", run_with_devices, "--json"]) == 0
    phone, _ = json.loads(capsys.readouterr().out)
    assert (phone["device"], phone["bytes_in"], phone["finished"], phone["samples"]) == ("phone", 1_234_567, True, 2)


def test_a_run_without_devices_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run_with(tmp_path, expect_devices=1)
    Store.open(RunFolder(Path(run)).store_path, max_bytes=8 * MIB).close()
    assert main(["devices", "--run", run]) == 0
    assert capsys.readouterr().out == "no device has connected yet\n"
