"""`sf-bench overlap`: the arithmetic, the course of a training with devices and a server that are not there, and a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from sf_bench.ingest.device import Demand
from sf_bench.ingest.fleet import Fleet
from sf_bench.main import main
from sf_bench.overlap.making import Batchwise, share
from sf_bench.overlap.measure import Course, Key, Measured
from sf_bench.overlap.report import overlap_markdown, overlap_report, points_of
from sf_bench.overlap.server import RunningServer
from sf_bench.overlap.settings import OverlapSettings
from sf_bench.overlap.theory import AT_ONCE, CACHED, IN_TURN, OURS, PIPELINED, WAYS, Way, expected, saving
from sf_bench.quality.environment import describe_environment
from sf_contract.errors import UsageError

SETTINGS = OverlapSettings(bundle="", work="", samples=8, devices=4)


def epochs_of(way: Way, ratio: float) -> float:
    return expected(way, ratio=ratio, epochs=3, devices=4)


def test_at_equal_speed_three_epochs_take_three_instead_of_fifteen_or_six():
    assert epochs_of(OURS, 1.0) == 3.0
    assert epochs_of(IN_TURN, 1.0) == 15.0
    assert epochs_of(AT_ONCE, 1.0) == 6.0
    assert saving(3.0, 15.0) == 80.0


def test_what_overlapping_and_caching_save_by_themselves():
    assert epochs_of(CACHED, 2.0) == 3 + 1 + 1
    assert epochs_of(PIPELINED, 2.0) == 2 + 2 + 2
    assert epochs_of(OURS, 2.0) == 2 + 1 + 1
    assert epochs_of(OURS, 0.25) == epochs_of(PIPELINED, 0.25) == 3.0


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 3.0, 10.0])
def test_ours_is_never_slower(ratio: float):
    assert all(epochs_of(OURS, ratio) <= epochs_of(way, ratio) for way in WAYS.values())


def test_shares_are_even_and_complete():
    assert [share(10, 4, number) for number in range(4)] == [3, 3, 2, 2]


def test_a_source_with_an_end_makes_nothing_after_it():
    demand = Demand(in_flight_bytes=1, samples_per_s=10.0, most=3)
    assert [int(demand.made(seconds)) for seconds in (0.0, 0.15, 0.31, 60.0)] == [0, 1, 3, 3]
    assert demand.next_s(0.05) == pytest.approx(0.1)
    assert demand.next_s(0.31) is None


class _World:
    """Devices and a server that take no time: whatever is let go is trained on at the next look; everything is written down."""

    def __init__(self, devices: int) -> None:
        self.devices = [Batchwise() for _ in range(devices)]
        self.diary: list[tuple[str, float]] = []
        self._seen = 0

    def begin(self) -> None:
        self.diary.append(("begin", 0))

    def run(self, end_s: float, *, every_s: float, look: object) -> None:
        del end_s, look
        if every_s - 1 > 0.05:
            self.diary.append(("computes", round(every_s - 1, 3)))

    def wake(self) -> None:
        made = [int(device.made(0.0)) for device in self.devices]
        self.diary.append(("sent", sum(made)))

    def trained(self) -> int:
        """One look later than it was sent, so that whoever does not wait is found out."""
        trained, self._seen = self._seen, int(sum(device.made(0.0) for device in self.devices))
        self.diary.append(("trained", trained))
        return trained


def course(world: _World, way: Way, *, epochs: int) -> list[tuple[str, float]]:
    fleet, server = cast(Fleet, world), cast(RunningServer, world)
    Course(fleet, server, SETTINGS, epochs=epochs, device_s=1.0).run(way, world.devices)
    return world.diary


def test_devices_in_turn_begin_only_when_the_server_has_trained_on_the_one_before():
    diary = course(_World(4), IN_TURN, epochs=2)
    assert [entry for entry in diary if entry[0] == "computes"] == [("computes", 2.0)] * 8
    trained = 0.0
    for what, number in diary:
        trained = number if what == "trained" else trained
        if what == "sent":
            assert number == trained + 2, "a device had sent before the server was ready for it"
    assert diary[-1] == ("trained", 16)


def test_devices_at_once_compute_in_every_epoch_and_cached_ones_only_in_the_first():
    uncached = [entry for entry in course(_World(4), AT_ONCE, epochs=3) if entry[0] == "sent"]
    assert uncached == [("sent", 8), ("sent", 16), ("sent", 24)]
    world = _World(4)
    cached = [entry for entry in course(world, CACHED, epochs=1) if entry[0] == "sent"]
    assert cached == [("sent", 8)]


def measured(way: Way, ratio: float, wall_s: float) -> Measured:
    key = Key(
        way=way.name, ratio=ratio, bundle_id="0" * 64, devices=4, samples=100, tokens=16, epochs=3, batch_samples=8,
        window_samples=16, first_layer=4, threads=1, server_s_per_sample=0.1,
    )  # fmt: skip
    return Measured(
        key=key, wall_s=wall_s, expected_s=10 * epochs_of(way, ratio), device_s_per_sample=0.4, computed=100,
        trained=300, steps=38, busy_s=29.0,
    )  # fmt: skip


def test_the_report_holds_every_point_against_ours_at_the_same_ratio(tmp_path: Path):
    found = [measured(OURS, 1.0, 31.0), measured(OURS, 1.0, 33.0), measured(IN_TURN, 1.0, 160.0)]
    ours, in_turn = sorted(points_of(found), key=lambda point: point.wall_s)
    assert (ours.wall_s, ours.each_s) == (32.0, (31.0, 33.0))
    assert in_turn.saved_percent == pytest.approx(80.0)
    assert in_turn.expected_percent == pytest.approx(80.0)
    report = overlap_report(
        found, base_model="tiny", split_layer=4, environment=describe_environment(threads=1, jobs=1), command="x"
    )
    assert report.is_within_target is True
    markdown = overlap_markdown(report, plot="overlap.svg")
    assert "It is met" in markdown
    assert "(overlap.svg)" in markdown


def test_without_the_deciding_ratio_nothing_is_decided():
    report = overlap_report(
        [measured(OURS, 2.0, 1.0), measured(IN_TURN, 2.0, 9.0)],
        base_model="tiny", split_layer=4, environment=describe_environment(threads=1, jobs=1), command="x",
    )  # fmt: skip
    assert report.is_within_target is None


def test_the_plot_is_drawn_the_same_way_twice_and_only_into_a_format_it_knows(tmp_path: Path):
    from sf_bench.overlap.plot import draw

    found = [measured(way, ratio, 10 * epochs_of(way, ratio)) for way in WAYS.values() for ratio in (0.5, 1.0, 2.0)]
    report = overlap_report(
        found, base_model="tiny", split_layer=4, environment=describe_environment(threads=1, jobs=1), command="x"
    )
    for name in ("one.svg", "two.svg"):
        draw(report, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    with pytest.raises(UsageError, match="no name for a plot"):
        draw(report, tmp_path / "plot.txt")


@pytest.mark.slow
def test_real_processes_train_every_sample_in_every_epoch_and_ours_computes_each_only_once(
    tmp_path: Path, comparison_bundle, tiny_model, capsys: pytest.CaptureFixture[str]
):
    bundle = comparison_bundle("eight", "--labels", "off,on", "--quantize", "none", "--wire", "int8")
    argv = [
        "overlap",
        "--bundle",
        bundle,
        "--model",
        tiny_model("llama"),
        "--work",
        tmp_path / "work",
        "--quick",
        "--json",
    ]
    argv += ["--server-s-per-sample", 0.002, "--report", tmp_path / "overlap"]
    assert main([str(argument) for argument in argv]) == 0
    report = json.loads(capsys.readouterr().out)
    points = {point["way"]: point for point in report["points"]}
    assert {way: point["computed"] for way, point in points.items()} == {"ours": 32, "in-turn": 64}
    assert [point["trained"] for point in points.values()] == [64, 64]
    assert [point["steps"] for point in points.values()] == [8, 8]
    assert (tmp_path / "overlap.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [
        "in-turn-ratio1-seed0.json",
        "ours-ratio1-seed0.json",
    ]
    before = json.dumps(report["points"])
    assert main([str(argument) for argument in argv]) == 0
    assert json.dumps(json.loads(capsys.readouterr().out)["points"]) == before
