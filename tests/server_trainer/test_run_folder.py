from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from sf_contract.errors import AlreadyRunning, MismatchError, StoreError, UsageError
from sf_server.run_folder import IngestRecord, RunFolder, write_atomically
from sf_server.settings import MAY_CHANGE_ON_RESUME, TrainSettings, check_train_settings

BUNDLE_ID = "b" * 64


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "deep" / "run")


def _settings(**changes: object) -> TrainSettings:
    return msgspec.structs.replace(TrainSettings(bundle="/bundle", run="/run", expect_devices=2), **changes)


def test_a_new_run_remembers_its_settings_and_bundle(folder: RunFolder) -> None:
    settings = _settings(lora_targets=("q_proj", "v_proj"), epochs=7)
    folder.create(settings, bundle_ids=(BUNDLE_ID,))
    record = RunFolder(folder.path).record()
    assert (record.settings, record.bundle_ids) == (settings, (BUNDLE_ID,))


def test_the_folder_is_its_owners_alone(folder: RunFolder) -> None:
    folder.create(_settings(), bundle_ids=(BUNDLE_ID,))
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_run_is_not_begun_twice(folder: RunFolder) -> None:
    folder.create(_settings(), bundle_ids=(BUNDLE_ID,))
    with pytest.raises(UsageError, match="there is a run in") as raised:
        folder.create(_settings(), bundle_ids=(BUNDLE_ID,))
    assert "--resume" in raised.value.cure


def test_a_folder_with_other_files_is_left_alone(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        folder.create(_settings(), bundle_ids=(BUNDLE_ID,))


def test_what_a_crash_before_the_first_save_left_behind_is_no_obstacle(folder: RunFolder) -> None:
    with folder.lock():
        (folder.path / "settings.json.tmp").write_bytes(b"{")
        folder.create(_settings(), bundle_ids=(BUNDLE_ID,))
    assert folder.exists()


def test_there_is_nothing_to_resume_in_an_empty_folder(folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="there is no run"):
        folder.resume(_settings(), bundle_ids=(BUNDLE_ID,))


def test_what_does_not_change_the_result_may_change_on_resume(folder: RunFolder) -> None:
    folder.create(_settings(), bundle_ids=(BUNDLE_ID,))
    changed = _settings(bind="tcp://127.0.0.1:9", threads=3, checkpoint_every_s=5.0, json=True, expect_devices=1)
    folder.resume(changed, bundle_ids=(BUNDLE_ID,))
    assert folder.settings() == changed


def test_everything_that_changes_the_result_is_named_with_both_values(folder: RunFolder) -> None:
    folder.create(_settings(), bundle_ids=(BUNDLE_ID,))
    with pytest.raises(MismatchError) as raised:
        folder.resume(_settings(seed=5, weight_decay=0.5, lora_targets=("q",)), bundle_ids=("c" * 64,))
    for part in (
        "--seed 0 -> 5",
        "--weight-decay 0.01 -> 0.5",
        "--lora-targets (empty) -> q",
        "--bundle bbbbbbbbbbbb -> cccccccccccc",
    ):
        assert part in raised.value.what
    assert folder.settings() == _settings()


def test_settings_that_may_change_are_settings(folder: RunFolder) -> None:
    assert set(TrainSettings.__struct_fields__) >= MAY_CHANGE_ON_RESUME


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 10_000, b'{"format_version": 1}'])
def test_damaged_settings_are_reported_with_the_file(folder: RunFolder, content: bytes) -> None:
    folder.path.mkdir(parents=True)
    folder.settings_path.write_bytes(content)
    with pytest.raises(StoreError, match=r"settings\.json"):
        folder.record()


def test_settings_of_another_format_version_are_refused_by_name(folder: RunFolder) -> None:
    folder.create(_settings(), bundle_ids=(BUNDLE_ID,))
    raw = folder.settings_path.read_bytes().replace(b'"format_version": 2', b'"format_version": 9')
    folder.settings_path.write_bytes(raw)
    with pytest.raises(StoreError, match="format version 9"):
        folder.record()


def test_only_one_supervisor_works_in_a_run_and_then_the_next(folder: RunFolder) -> None:
    with folder.lock(), pytest.raises(AlreadyRunning, match="another sf-server train"), folder.lock():
        pass
    with folder.lock():
        pass


def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"), RunFolder(tmp_path / "file" / "run").lock():
        pass


def test_the_address_of_ingest_is_unknown_until_it_is_announced(folder: RunFolder) -> None:
    folder.create(_settings(), bundle_ids=(BUNDLE_ID,))
    assert folder.ingest_record() is None
    folder.announce_ingest(IngestRecord(address="tcp://127.0.0.1:1", pid=5))
    assert folder.ingest_record() == IngestRecord(address="tcp://127.0.0.1:1", pid=5)


def test_an_atomic_write_leaves_the_new_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("changes", [{"expect_devices": None}, {"expect_samples": 10}])
def test_training_needs_exactly_one_way_to_know_that_the_data_is_complete(changes: dict[str, object]) -> None:
    check_train_settings(_settings())
    with pytest.raises(UsageError, match="--expect-devices and --expect-samples"):
        check_train_settings(_settings(**changes))
