"""Slopes of memory and open files, and a short soak of the real server."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sf_bench.soak.command import run, table_of
from sf_bench.soak.flatness import flatness_of, theil_sen
from sf_bench.soak.soak import SoakReport
from sf_contract.errors import UsageError
from sf_contract.limits import MIB

TIMES = [float(second) for second in range(120)]


def _memory(*, leak_per_s: float, noise: float = 1 * MIB) -> list[float]:
    generator = random.Random(5)
    return [400 * MIB + leak_per_s * at + generator.gauss(0, noise) for at in TIMES]


def _judged(values: list[float]) -> bool:
    return flatness_of("memory", "bytes", at_s=TIMES, values=values, least_allowed=4 * MIB).is_flat


def test_the_slope_is_found_through_noise_and_jumps():
    values = _memory(leak_per_s=0.25 * MIB)
    values[40] += 500 * MIB
    slope = theil_sen(TIMES, values)
    assert slope.low < 0.25 * MIB < slope.high
    assert slope.estimate == pytest.approx(0.25 * MIB, rel=0.1)


def test_the_interval_holds_the_true_slope_about_as_often_as_it_says():
    generator = random.Random(1)
    held = 0
    for _ in range(200):
        slope = theil_sen(TIMES[:40], [2.0 * at + generator.gauss(0, 3) for at in TIMES[:40]])
        held += slope.low <= 2.0 <= slope.high
    assert 182 <= held <= 199, "95 % of 200 are 190"


@pytest.mark.parametrize(("leak_per_s", "flat"), [(0.0, True), (0.05 * MIB, True), (0.15 * MIB, False)])
def test_only_what_certainly_grew_by_more_than_is_allowed_is_not_flat(leak_per_s, flat):
    """8 MiB of 400 in two minutes are allowed: 0.067 MiB/s."""
    assert _judged(_memory(leak_per_s=leak_per_s)) is flat


def test_memory_that_was_given_back_is_flat():
    assert _judged(_memory(leak_per_s=-1 * MIB))


@pytest.mark.parametrize("at", [[0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 0.0, 1.0]])
def test_readings_without_a_slope_are_refused(at):
    with pytest.raises(ValueError, match=r"readings|slope"):
        theil_sen(at, [1.0] * len(at))


def test_the_table_names_what_grew():
    grown = flatness_of("trainer: open files", "files", at_s=TIMES, values=TIMES, least_allowed=2.0)
    table = table_of(SoakReport(watched_s=119, samples=1, steps=1, stored=1, found=(grown,)))
    assert "| trainer: open files |" in table
    assert table.endswith("| GREW |\n")


def test_numbers_that_watch_nothing_are_refused():
    with pytest.raises(UsageError, match="nothing is soaked"):
        run(["--minutes", "0"])


@pytest.mark.slow
def test_memory_and_open_files_of_a_server_that_works_on_are_flat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--minutes", "0.6", "--warm-up-s", "8", "--keep", str(tmp_path / "kept"), "--json"]
    code = run(options)
    report = json.loads(capsys.readouterr().out)
    assert (code, report["is_flat"]) == (0, True), report["found"]
    assert report["steps"] > 0
    assert report["samples"] > 0
    assert [one["name"].partition(":")[0] for one in report["found"]] == ["ingest", "ingest", "trainer", "trainer"]
