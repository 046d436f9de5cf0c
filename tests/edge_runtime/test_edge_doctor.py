"""`sf-edge doctor` on one machine: what each check says, and what follows from it. The way to the server: tests/link."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sf_contract.errors import DataError, DiskFull, ServerUnreachable, StoreError, UsageError
from sf_contract.limits import MIB
from sf_edge.doctor.device_checks import (
    FIRST_WRITTEN_S,
    LEAST_FREE_BYTES,
    DiskSpace,
    look_at_clock,
    look_at_disk,
    look_at_governor,
    look_at_outbox,
)
from sf_edge.doctor.examine import examine
from sf_edge.doctor.findings import Check, Concern, Examination, Finding, Found, State
from sf_edge.doctor.instruments import system_instruments
from sf_edge.doctor.local_checks import look_at_bundle
from sf_edge.doctor.network_checks import Host, resolve_within
from sf_edge.doctor.report import conclusion_text, finding_text
from sf_edge.governor.decisions import Reading
from sf_edge.outbox.lock import FolderLock
from sf_edge.settings import DoctorSettings

ROOMY = DiskSpace(free_bytes=1 << 40, free_files=None)


def examination() -> Examination:
    return Examination(lambda finding: None)


def fail(kind: type[Any]) -> Any:
    def body() -> Found[int]:
        raise kind("it broke", cure="mend it")

    return body


def test_what_needs_a_failed_check_is_skipped_with_the_first_cause_however_far_away() -> None:
    found = examination()
    found.look(Check.NAME, fail(ServerUnreachable))
    found.look(Check.TCP, fail(DataError), needs=[Check.NAME])
    found.look(Check.HANDSHAKE, fail(DataError), needs=[Check.TCP])
    assert [finding.detail for finding in found.findings.values()] == ["it broke", *["because host name failed"] * 2]
    assert found.exit_code == ServerUnreachable.exit_code


def test_what_needs_something_that_was_not_given_says_that() -> None:
    found = examination()
    found.skip(Check.BUNDLE, "--bundle is not given")
    assert found.look_at(Check.SIGNATURE, None, lambda _: Found(0, ""), needs=[Check.BUNDLE]) is None
    assert found.findings[Check.SIGNATURE] == Finding(Check.SIGNATURE, State.SKIPPED, "--bundle is not given")
    assert found.exit_code == 0


def test_the_exit_code_is_that_of_the_first_failure_and_warnings_have_none() -> None:
    found = examination()
    found.look(Check.CLOCK, lambda: Found(1, "late", (Concern("wrong", "set it"),)))
    assert (found.exit_code, found.findings[Check.CLOCK].state) == (0, State.WARNING)
    found.look(Check.DATA, fail(DataError))
    found.look(Check.DISK, fail(DiskFull))
    assert found.exit_code == DataError.exit_code
    said = conclusion_text(found.findings.values(), exit_code=found.exit_code)
    assert said == "3 checks: 2 failed, 1 with a warning; exit code 12"


def test_what_a_terminal_would_obey_is_written_out() -> None:
    found = examination()
    found.look(Check.VERDICT, lambda: Found(1, "fine \x1b[2J\nfailed"))
    assert finding_text(found.findings[Check.VERDICT]).endswith(r"fine \x1b[2J failed")


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (DiskSpace(LEAST_FREE_BYTES - 1, None), "only 8.0 MiB free"),
        (DiskSpace(0, 1000), "only 0 B and 1000 files free"),
        (DiskSpace(1 << 40, 3), "3 files free"),
    ],
)
def test_a_disk_without_room_fails(tmp_path: Path, space: DiskSpace, says: str) -> None:
    with pytest.raises(DiskFull, match=says):
        look_at_disk(DoctorSettings(outbox=str(tmp_path)), None, space_of=lambda _: space)


def test_a_disk_with_less_room_than_the_outbox_may_take_is_a_warning_that_ends_where_it_fits(tmp_path: Path) -> None:
    settings = DoctorSettings(outbox=str(tmp_path / "not" / "yet"))
    asked: list[Path] = []

    def space_of(folder: Path) -> DiskSpace:
        asked.append(folder)
        return DiskSpace(100 * MIB, None)

    (concern,) = look_at_disk(settings, None, space_of=space_of).concerns
    assert "grow by 256.0 MiB" in concern.what
    assert "--max-outbox-bytes 52428800" in concern.cure
    smaller = replace_settings(settings, max_outbox_bytes=100 * MIB)
    assert look_at_disk(smaller, None, space_of=space_of).concerns == ()
    assert asked == [tmp_path, tmp_path], "the disk of the nearest folder that exists is asked"


def replace_settings(settings: DoctorSettings, **changes: Any) -> DoctorSettings:
    return msgspec.structs.replace(settings, **changes)


def test_the_clock_is_held_against_the_program_and_the_server() -> None:
    def concerns(now_s: float, server_s: float | None = None) -> str:
        return "".join(concern.what for concern in look_at_clock(now_s, bundle=None, server_s=server_s).concerns)

    later_s = FIRST_WRITTEN_S + 1e6
    assert concerns(later_s) == concerns(later_s, later_s + 119) == ""
    assert "before this program was written (2026-11-01" in concerns(0.0)
    assert "2 minutes behind the server's" in concerns(later_s, later_s + 121)
    assert "12 days ahead of the server's" in concerns(later_s, FIRST_WRITTEN_S)
    assert "s after 1970" in concerns(-1e18)


def test_a_governor_option_with_nothing_to_go_by_is_a_warning() -> None:
    concerns = look_at_governor(DoctorSettings(min_battery=30), Reading()).concerns
    assert [concern.what for concern in concerns] == [
        "no battery can be read on this machine, so --min-battery never pauses"
    ]
    assert look_at_governor(DoctorSettings(), Reading()).concerns == ()


def test_an_outbox_is_looked_at_without_being_made_or_held(tmp_path: Path, bundle: Any) -> None:
    settings = DoctorSettings(outbox=str(tmp_path / "outbox"))
    assert "can be made" in look_at_outbox(settings, bundle).detail
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path / "outbox"):
        (concern,) = look_at_outbox(settings, bundle).concerns
        assert "a running sf-edge uses it" in concern.what
        assert FolderLock.is_held(tmp_path / "outbox")
    assert look_at_outbox(settings, bundle).concerns == ()
    with FolderLock(tmp_path / "outbox"):
        pass


def test_a_file_where_the_outbox_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file is no folder"):
        look_at_outbox(DoctorSettings(outbox=str(tmp_path / "file" / "outbox")), None)


def test_of_several_quantizations_the_one_chosen_before_is_looked_at_and_damaged_ones_are_named(
    tmp_path: Path, bundle: Any
) -> None:
    for name in ("a", "b", "c"):
        shutil.copytree(bundle.folder, tmp_path / name)
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    found = look_at_bundle(tmp_path, None, remember=lambda accepted: None)
    assert "as sf-edge run has not chosen here yet" in found.detail
    assert [concern.what.partition(":")[0] for concern in found.concerns] == ["b"]
    chosen = look_at_bundle(tmp_path, None, remember=lambda accepted: accepted[-1])
    assert "chosen here before" in chosen.detail


def test_without_any_option_everything_that_needs_one_is_skipped(edge: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    outcome = edge.command("doctor", json=True)
    states = {found["check"]: found["state"] for found in json.loads(outcome.out)["checks"]}
    assert outcome.code == 0
    assert {check for check, state in states.items() if state == "skipped"} == {
        "bundle", "signature", "self-test", "data", "address", "key", "server key", "host name", "tcp", "handshake", "verdict",
    }  # fmt: skip
    assert not (tmp_path / ".local").exists()


@pytest.mark.parametrize(
    ("options", "check", "code"),
    [
        ({"server": "lab:5555"}, "address", 2),
        ({"no_governor": True, "min_battery": 30}, "settings", 2),
        ({"data": "missing.jsonl"}, "data", 12),
        ({"bundle": "missing"}, "bundle", 13),
        ({"max_cpu": "lots"}, "settings", 2),
    ],
)
def test_each_mistake_is_one_failure_with_the_code_that_run_would_end_with(
    edge: Any, tmp_path: Path, options: dict[str, object], check: str, code: int
) -> None:
    outcome = edge.command("doctor", outbox=tmp_path / "outbox", json=True, **options)
    found = [found for found in json.loads(outcome.out)["checks"] if found["state"] == "failed"]
    assert found[0]["check"] == check
    assert all(other["exit_code"] == code and other["cure"] for other in found)
    assert outcome.code == code


def test_a_label_that_the_bundle_does_not_have_is_found(edge: Any, bundle: Any, tmp_path: Path) -> None:
    data = edge.write(2)
    settings = DoctorSettings(bundle=str(bundle.folder), data=str(data), label="other", outbox=str(tmp_path / "outbox"))
    instruments = replace(system_instruments(settings), space_of=lambda _: ROOMY)
    finding = examine(settings, instruments, lambda finding: None).findings[Check.DATA]
    assert finding.exit_code == UsageError.exit_code
    assert "lights, music" in finding.cure


def test_settings_of_run_from_a_file_are_taken_and_unknown_ones_refused(edge: Any, tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text('device = "kitchen"\nmax-cpu = "25%"\n')
    outcome = edge.command("doctor", config=config, outbox=tmp_path / "outbox")
    assert "device kitchen" in outcome.out
    config.write_text("bundel = 1\n")
    assert edge.command("doctor", config=config).code == 2


def test_a_name_that_nobody_can_tell_in_time_is_a_timeout() -> None:
    with pytest.raises(OSError):
        resolve_within(Host("no-such-host.invalid", 1), timeout_s=5)
    with pytest.raises(TimeoutError):
        resolve_within(Host("no-such-host.invalid", 1), timeout_s=0)
