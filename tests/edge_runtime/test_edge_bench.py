"""`sf-edge bench` on a tiny bundle: a real process, real turns, a document that other programs read."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sf_contract.errors import BundleError, SelfTestFailed, UsageError
from sf_contract.front_end import open_front_end
from sf_edge import run
from sf_edge.bench import tuning
from sf_edge.bench.command import parse_shapes, parse_threads
from sf_edge.bench.energy import NoMeter
from sf_edge.bench.machine import Machine
from sf_edge.bench.measurement import energy_of, plan_for, processor_share
from sf_edge.bench.report import (
    SCHEMA_VERSION,
    Advice,
    BenchReport,
    CellResult,
    Energy,
    Shape,
    Start,
    Throttling,
    report_text,
)
from sf_edge.bench.start import measure_start, resident_bytes
from sf_edge.bench.tuning_files import tuning_path
from sf_edge.bench.turns import Effort, Measured, Turn

QUICK = {"rounds": 2, "seconds": 0.05}
SHORT = Effort(rounds=1, seconds=1.0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def tuning_folder(home: Path) -> Path:
    return home / ".local/state/splitfrozen/tuning"


def test_a_bundle_is_measured_and_the_document_reads_back_as_it_was(edge, bundle, home) -> None:
    outcome = edge.command("bench", bundle.folder, shapes="1x4,2x4", threads="1,2", json=True, **QUICK)
    assert outcome.code == 0, outcome.err
    report = msgspec.json.decode(outcome.out, type=BenchReport)
    assert msgspec.json.decode(outcome.out) == msgspec.json.decode(msgspec.json.encode(report))
    assert (report.schema_version, report.bundle_id) == (SCHEMA_VERSION, bundle.bundle_id)
    cells = [(cell.shape, cell.threads) for cell in report.cells]
    assert cells == [(Shape(1, 4), 1), (Shape(1, 4), 2), (Shape(2, 4), 1), (Shape(2, 4), 2)]
    assert all(0 < cell.p50_ms <= cell.p95_ms <= cell.p99_ms for cell in report.cells)
    assert all(cell.runs >= 6 for cell in report.cells)
    assert [(load.threads, load.openings) for load in report.loads] == [(1, 2), (2, 2)]
    assert not tuning_folder(home).exists()


def test_start_up_is_measured_in_a_process_of_its_own(bundle) -> None:
    start = measure_start(bundle, [Shape(1, 4)])
    phases = ("imports_s", "check_s", "tokenizer_s", "load_s", "self_test_s", "first_row_s")
    assert all(getattr(start, name) > 0 for name in phases)
    assert sum(getattr(start, name) for name in phases) == pytest.approx(start.total_s)
    assert start.weights_bytes == bundle.graph_path.stat().st_size
    before, idle, peak = start.rss_before_graph_bytes, start.rss_idle_bytes, start.rss_peak_bytes
    assert before is not None
    assert idle is not None
    assert peak is not None
    assert 0 < before <= peak
    assert 0 < idle <= peak
    assert start.rss_idle_above_weights_bytes == idle - start.weights_bytes


def test_a_process_that_fails_or_is_killed_is_reported_with_its_reason(bundle, tmp_path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(BundleError, match="out of luck"):
        measure_start(bundle, [Shape(1, 4)], python=str(script))
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(BundleError, match="SIGKILL"):
        measure_start(bundle, [Shape(1, 4)], python=str(script))


def test_memory_is_read_from_linux_or_unknown(tmp_path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t    2000 kB\nVmRSS:\t    1000 kB\n")
    assert resident_bytes("VmRSS", tmp_path / "status") == 1_024_000
    assert resident_bytes("VmSwap", tmp_path / "status") is None
    assert resident_bytes("VmRSS", tmp_path / "missing") is None


def test_tuning_on_a_busy_machine_is_not_stored_and_that_is_said(edge, bundle, home, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "QUIET_SHARE", 99.0)
    outcome = edge.command("bench", bundle.folder, shapes="1x4", threads="1,2", tune=True, json=True, **QUICK)
    assert outcome.code == 0, outcome.err
    assert "nothing is stored, as the machine was busy" in outcome.err
    assert (outcome.summary["advice"]["threads"], outcome.summary["advice"]["stored_in"]) == (1, None)
    assert not tuning_folder(home).exists()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, it counts as quiet."""
    monkeypatch.setattr(tuning, "QUIET_SHARE", 0.0)


@pytest.mark.usefixtures("quiet")
def test_tuning_is_stored_and_used_by_run_until_told_otherwise(edge, bundle, server, home, monkeypatch) -> None:
    outcome = edge.command("bench", bundle.folder, shapes="1x4", threads="2", tune=True, **QUICK)
    assert outcome.code == 0, outcome.err
    path = tuning_path(tuning_folder(home), bundle.bundle_id)
    assert f"stored in {path}" in outcome.out
    data = edge.write(3)
    opened_with: list[int] = []
    monkeypatch.setattr(
        run,
        "open_front_end",
        lambda of, *, threads: (opened_with.append(threads), open_front_end(of, threads=threads))[1],
    )
    assert "pi: 2 threads, as sf-edge bench --tune found here" in edge.run(server, data).err
    assert "threads" not in edge.run(server, data, threads=3).err
    assert opened_with == [2, 3]
    record = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**record, "machine_digest": "0" * 64}))
    assert "of another machine or version" in edge.run(server, data).err
    path.write_bytes(b"{")
    outcome = edge.run(server, data)
    assert outcome.code == 0
    assert "is damaged and is ignored" in outcome.err


@pytest.mark.usefixtures("quiet")
def test_tuning_that_cannot_be_stored_is_an_error_with_a_cure(edge, bundle, home) -> None:
    tuning_folder(home).parent.mkdir(parents=True)
    tuning_folder(home).write_text("a file where the folder should be")
    outcome = edge.command("bench", bundle.folder, shapes="1x4", threads="1", tune=True, **QUICK)
    assert outcome.code == UsageError.exit_code
    assert "leave out --tune" in outcome.err


def test_a_bundle_that_fails_its_self_test_is_not_measured(edge, make_bundle) -> None:
    outcome = edge.command("bench", make_bundle("wrong", worst=1e-9).folder, **QUICK)
    assert outcome.code == SelfTestFailed.exit_code
    assert outcome.out == ""


@pytest.mark.parametrize(
    "options",
    [{"shapes": "1x16,"}, {"shapes": "0x4"}, {"shapes": "1x17"}, {"threads": "0"}, {"threads": "two"}, {"rounds": 0}],
)
def test_what_cannot_be_measured_is_a_usage_error(edge, bundle, options) -> None:
    assert edge.command("bench", bundle.folder, **options).code == UsageError.exit_code


def test_shapes_and_threads_are_lists() -> None:
    assert parse_shapes("1x16, 4x64") == (Shape(1, 16), Shape(4, 64))
    assert parse_threads("1, 2") == (1, 2)


def test_usual_shapes_fit_the_bundle(bundle) -> None:
    plan = plan_for(bundle, shapes=None, threads=None, effort=SHORT)
    assert plan.shapes == (Shape(1, 16), Shape(4, 16))
    assert plan.threads[0] == 1


def turn(threads: int, wall_s: float, cpu_s: float, joules: float | None = None) -> Turn[int]:
    return Turn(threads, Shape(1, 4), (wall_s,), cpu_s, joules)


def test_a_busy_machine_is_told_from_a_quiet_one() -> None:
    turns = (turn(1, 1.0, 0.5), turn(1, 1.0, 0.7), turn(2, 1.0, 2.0))
    assert processor_share(Measured(turns, ())) == pytest.approx(0.6)


class Meter:
    source = "a meter"


def test_energy_is_whole_or_missing_with_a_reason() -> None:
    whole = Measured((turn(1, 1.0, 1.0, 4.0), turn(1, 3.0, 1.0, 8.0)), ())
    assert energy_of(whole, Meter()) == Energy(joules=12.0, watts=3.0, source="a meter")
    broken = energy_of(Measured((*whole.turns, turn(1, 1.0, 1.0)), ()), Meter())
    assert broken.joules is None
    assert "stopped" in str(broken.why_not)
    assert energy_of(whole, NoMeter("nothing there")) == Energy(why_not="nothing there")


def report(**changes: object) -> BenchReport:
    fields = {
        "software": "splitfrozen 1",
        "python": "3.11",
        "onnxruntime": "1",
        "machine": Machine("aarch64 Board", 4, ("asimddp",), kernel="6.1", memory_bytes=2**32),
        "machine_digest": "0" * 64,
        "bundle_id": "1" * 64,
        "bundle_bytes": 5_000_000,
        "model": "tiny",
        "split_layer": 4,
        "self_test_error": 0.01,
        "rounds": 5,
        "timed_wall_s": 10.0,
        "timed_cpu_s": 9.0,
        "processor_share": 0.99,
        "start": Start(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.6, 4_000_000, None, None, None),
        "loads": (),
        "cells": (CellResult(Shape(1, 16), 1, 100, 1.0, 2.0, 3.0, 16_000.0, 1.0, 0.25),),
        "energy": Energy(joules=12.0, watts=3.0, source="a meter"),
        "throttling": Throttling(seen=True, evidence=("it was hot",), median_mhz=900.0, limit_mhz=1800.0),
        "advice": Advice(threads=1, tokens_per_s=16_000.0, is_reliable=True, reason="only one"),
    }
    return BenchReport(**{**fields, **changes})


def test_the_table_tells_what_is_known_and_what_is_not() -> None:
    text = report_text(report())
    assert "12.0 J, 3.0 W while timed, a meter" in text
    assert "throttling: it was hot (median clock 900 of 1800 MHz)" in text
    assert "unknown after the first row" in text
    assert "busy machine" not in text
    text = report_text(report(processor_share=0.5, energy=Energy(why_not="no permission"), throttling=Throttling(None)))
    assert "busy machine: a pass had its processor only 50% of the time" in text
    assert "energy: not measured: no permission" in text
    assert "throttling: unknown" in text


def test_help_teaches(edge, capsys) -> None:
    with pytest.raises(SystemExit):
        edge.command("bench", "--help")
    text = capsys.readouterr().out
    assert all(word in text for word in ("ROWSxTOKENS", "--tune keeps", "how to read it", "examples:"))
