"""`sf-bench ingest` against the real ingest process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sf_bench.ingest.command import parse_shapes, run
from sf_bench.ingest.samples import SampleShape
from sf_contract.errors import UsageError

QUICK = ["--shape", "576x25", "--seconds", "1", "--warm-up-s", "0.5", "--disk-s", "0.05"]


@pytest.mark.slow
def test_eight_devices_in_the_clear_and_encrypted_and_a_greedy_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "table.md"
    options = ["--folder", str(tmp_path), "--devices", "8", "--json", "--markdown", str(written), "--profile"]
    assert run([*options, *QUICK]) == 0
    report = json.loads(capsys.readouterr().out)
    crowds = report["crowds"]
    assert [crowd["encrypted"] for crowd in crowds] == [False, True]
    for crowd in crowds:
        load = crowd["load"]
        assert load["samples"] > 0
        assert load["nbytes"] == load["samples"] * SampleShape(hidden=576, tokens=25).nbytes
        assert load["written_bytes"] > load["nbytes"]
        assert load["descriptors"] >= 8
        assert load["cpu_s"] > 0
        assert 1 / 8 <= crowd["shares"]["jain"] <= 1
    alone, beside = report["neighbours"]
    assert (alone["devices"], alone["greedy_mb_per_s"]) == (7, None)
    assert beside["greedy_mb_per_s"] > 0
    assert report["profile"]["groups"] > 0
    assert [rates["group_bytes"] for rates in report["disk"]] == [65_536, 1_048_576, 16_777_216]
    assert written.read_text(encoding="utf-8").count("| encrypted |") == 2
    assert [file.name for file in tmp_path.iterdir()] == ["table.md"], "something was left behind"


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        run(["--folder", str(tmp_path / "nowhere")])


@pytest.mark.parametrize("options", [["--seconds", "0"], ["--in-flight-bytes", "0"], ["--modest-samples-per-s", "-1"]])
def test_numbers_that_measure_nothing_are_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(UsageError, match="nothing is measured"):
        run(["--folder", str(tmp_path), *options])


def test_shapes_are_read_from_the_command_line() -> None:
    assert parse_shapes("576x25,2048x128") == (SampleShape(576, 25), SampleShape(2048, 128))
    with pytest.raises(ValueError):
        parse_shapes("576x0")
