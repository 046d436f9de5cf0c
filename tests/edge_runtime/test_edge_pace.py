"""The governor in the loop of `sf-edge run`: a made-up clock and machine, a real outbox, source and session."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sf_contract.activations import EncodedSample
from sf_contract.codec import EncodedRows, WireCodec
from sf_contract.errors import UsageError
from sf_contract.frames import decode, encode
from sf_contract.messages import (
    PROTOCOL_VERSION,
    Ack,
    ActivationBatch,
    Finished,
    FinishNoted,
    Hello,
    Ping,
    Pong,
    Role,
    Stored,
    Welcome,
)
from sf_edge.clock import Clock
from sf_edge.governor.activity import ACTIVITY_FILE, REWRITE_AFTER_S, Activity, ActivityFile, read_activity
from sf_edge.governor.decisions import Limits, Reading
from sf_edge.governor.pace import READ_EVERY_S, Pace, Senses, blind_spots, limits_of
from sf_edge.interrupts import Interrupts
from sf_edge.loop import COMMIT_AFTER_S, EdgeLoop, Work
from sf_edge.outbox.queue import Outbox
from sf_edge.outbox.records import Owner
from sf_edge.producer import Produced
from sf_edge.session import Session, Terms
from sf_edge.settings import RunSettings, cpu_share
from sf_edge.sources.files import FilesSource, Surroundings
from sf_edge.sources.listing import OneFile
from sf_edge.sources.reading_rules import ReadingRules

WELL = Reading(battery_percent=80, on_battery=True, temperature_c=40)
LOW = replace(WELL, battery_percent=12)
LIMITS = Limits(min_battery_percent=20, max_temperature_c=75)
SAMPLE_COST_S = 0.1
MOST_TURNS = 10_000
OWNER = Owner(bundle_id="b" * 64, device="pi", codec=WireCodec.FP32, hidden=4)


class World:
    """Simulated time, a machine whose state is a function of it, and a server that answers at once.

    Attributes:
        passes: when each forward pass was computed.
        got: what the server received, with its time.
        turns: waits of the loop.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.cpu_s = 0.0
        self.state: Reading = WELL
        self.changes: deque[tuple[float, Reading]] = deque()
        self.reads = 0
        self.passes: list[float] = []
        self.got: list[tuple[float, object]] = []
        self.said: list[str] = []
        self.turns = 0
        self.bytes_up = self.bytes_down = 0
        self._answers: deque[list[bytes]] = deque()
        self._stop_at_s = float("inf")
        self._interrupts: Interrupts | None = None

    def stop_at(self, now_s: float, interrupts: Interrupts) -> None:
        self._stop_at_s, self._interrupts = now_s, interrupts

    def read(self) -> Reading:
        self.reads += 1
        while self.changes and self.changes[0][0] <= self.now_s:
            self.state = self.changes.popleft()[1]
        return self.state

    def produce(self, row: object, *, ordinal: int) -> Produced:
        self.passes.append(self.now_s)
        self.now_s += SAMPLE_COST_S
        self.cpu_s += SAMPLE_COST_S
        rows = EncodedRows(WireCodec.FP32, np.ones((2, 4), np.float32), np.zeros((2, 0), np.float32))
        return Produced(EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows, label=0), was_cut=False)

    def connect(self) -> None:
        pass

    disconnect = connect

    def send(self, frames: list[bytes]) -> None:
        message = decode([bytes(frame) for frame in frames]).message
        self.got.append((self.now_s, message))
        match message:
            case Hello():
                answer = Welcome(software="test", credit_bytes=1 << 20)
            case ActivationBatch(samples=samples):
                answer = Ack(verdicts=tuple(Stored(sample.ordinal) for sample in samples), credit_bytes=1 << 20)
            case Ping():
                answer = Pong()
            case Finished():
                answer = FinishNoted()
        self._answers.append([bytes(frame) for frame in encode(answer)])

    def receive(self) -> list[bytes] | None:
        return self._answers.popleft() if self._answers else None

    def events(self) -> list[object]:
        return []

    def wait(self, timeout_s: float, *, wake_descriptors: list[int]) -> None:
        self.turns += 1
        assert self.turns < MOST_TURNS, "a busy wait"
        self.now_s += 0.001 if self._answers else max(0.001, timeout_s)
        if self.now_s >= self._stop_at_s:
            self._interrupts.received = 15

    def messages(self, kind: type) -> list[tuple[float, object]]:
        return [(at_s, message) for at_s, message in self.got if isinstance(message, kind)]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def run(world: World, tmp_path: Path):
    """Runs the loop over some rows until it ends or a time; gives the rows computed."""

    def go(rows: int, *, limits: Limits = LIMITS, watch: bool = False, until_s: float = float("inf")) -> int:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(f'{{"text": "row {i}", "label": "x"}}\n' for i in range(rows)))
        clock = Clock(now_s=lambda: world.now_s, cpu_s=lambda: world.cpu_s, wall_s=lambda: world.now_s)
        interrupts = Interrupts()
        world.stop_at(until_s, interrupts)
        activity = ActivityFile(tmp_path / "outbox", wall_s=clock.wall_s)
        senses = Senses(probe=world, clock=clock, say=world.said.append, activity_file=activity)
        with Outbox(tmp_path / "outbox", owner=OWNER, max_bytes=1 << 20) as outbox:
            hello = Hello(PROTOCOL_VERSION, "test", "pi", outbox.outbox_id, OWNER.bundle_id, 0.0, 0)
            work = Work(
                bundle_id=OWNER.bundle_id, device="pi", data="rows", largest_sample_bytes=100,
                source=FilesSource(
                    OneFile(data), positions=outbox.positions, rules=ReadingRules(), watch=watch,
                    around=Surroundings(clock=clock.now_s, say=world.said.append, move=outbox.move_sources),
                ),
                producer=world, outbox=outbox, link=world, pace=Pace(limits, senses),
                session=Session(Terms(hello, "tcp://server:1", 60.0), random=lambda: 0.5, now_s=world.now_s),
            )  # fmt: skip
            EdgeLoop(work, clock=clock, say=world.said.append).run(interrupts)
        return len(world.passes)

    return go


def test_while_paused_nothing_is_computed_the_link_lives_and_the_work_goes_on_after(world, run) -> None:
    world.changes.extend([(1.0, LOW), (400.0, WELL)])
    assert run(500) == 500
    before = [at_s for at_s in world.passes if at_s <= READ_EVERY_S + SAMPLE_COST_S]
    after = [at_s for at_s in world.passes if at_s >= 400.0]
    assert len(before) + len(after) == 500
    assert after[0] <= 400.0 + READ_EVERY_S
    silence_s = [0.0, *(at_s for at_s, _ in world.got)]
    assert max(late - early for early, late in itertools.pairwise(silence_s)) <= 5.1
    assert len(world.messages(Hello)) == 1, "the connection was never lost"
    assert world.messages(Finished)


def test_a_pause_hardly_wakes_the_device(world, run) -> None:
    world.state = LOW
    assert run(50, until_s=1000.0) == 0
    assert world.turns <= 1000
    assert world.reads <= 1000 / READ_EVERY_S + 1


def test_what_is_ready_is_still_sent_while_paused(world, run) -> None:
    world.changes.append((0.5, LOW))
    run(500, until_s=60.0)
    delivered = sum(len(batch.samples) for _, batch in world.messages(ActivationBatch))
    assert delivered == len(world.passes) > 0


def test_a_device_that_is_paused_with_nothing_left_to_compute_finishes(world, run) -> None:
    world.changes.append((SAMPLE_COST_S, LOW))
    run(1)
    assert world.messages(Finished)
    world.state = LOW
    run(1)
    assert len(world.messages(Finished)) == 2
    assert len(world.passes) == 1


def test_a_pause_is_told_like_every_wait_and_only_while_it_keeps_a_row_waiting(world, run) -> None:
    world.state = LOW
    run(1, until_s=36.0)
    told = [line for line in world.said if line.startswith("paused")]
    assert (
        told == [f"paused: battery at 12 %, waits for 25 % or the charger, since {s} s" for s in (10, 20, 30, 35)][:3]
    )


def test_a_paused_device_without_rows_says_what_it_waits_for_first(world, run) -> None:
    world.state = LOW
    run(0, watch=True, until_s=60.0)
    assert any("new lines" in line for line in world.said)
    assert not any(line.startswith("paused") for line in world.said)


def test_the_server_hears_of_a_pause_and_of_its_end_at_once(world, run) -> None:
    world.changes.extend([(6.0, LOW), (100.0, WELL)])
    run(2000, until_s=125.0)
    activities = [(at_s, ping.activity) for at_s, ping in world.messages(Ping)]
    paused = [at_s for at_s, activity in activities if activity is not None]
    assert {activity for _, activity in activities if activity} == {
        "paused: battery at 12 %, waits for 25 % or the charger"
    }
    assert 6.0 <= paused[0] <= 6.0 + READ_EVERY_S + 0.2
    ended_s = next(at_s for at_s, activity in activities if at_s > paused[-1])
    assert 100.0 <= ended_s <= 100.0 + READ_EVERY_S + 0.2


def test_words_longer_than_a_ping_may_carry_are_cut(world, run) -> None:
    world.state = replace(
        WELL, battery_percent=1, temperature_c=99, memory_pressure_percent=99, cpu_pressure_percent=99
    )
    run(1, limits=Limits(20, True, 75, 10, 10), until_s=20.0)
    ((_, ping), *_) = world.messages(Ping)
    assert ping.activity.startswith("paused: battery at 1 % and runs on battery and 99 °C hot and ")


@pytest.mark.parametrize("share", [0.1, 0.25, 0.8])
def test_the_share_of_a_core_is_kept_over_time_and_rows_come_evenly(world, run, share) -> None:
    run(10_000, limits=Limits(max_cpu=share), until_s=120.0)
    assert world.cpu_s / world.now_s == pytest.approx(share, rel=0.05)
    assert world.turns <= 3 * len(world.passes) + 120 / COMMIT_AFTER_S, "it sleeps through its rests"
    gaps = np.diff(world.passes)
    assert gaps.max() <= 2 * SAMPLE_COST_S / share


def test_after_a_pause_the_share_is_not_made_up_for(world, run) -> None:
    world.changes.extend([(5.0, LOW), (600.0, WELL)])
    run(10_000, limits=replace(LIMITS, max_cpu=0.25), until_s=640.0)
    after = [at_s for at_s in world.passes if 600.0 <= at_s <= 620.0]
    assert len(after) * SAMPLE_COST_S <= 0.25 * (20.0 + 1.0) + SAMPLE_COST_S


def test_without_a_limit_nothing_rests(world, run) -> None:
    run(200)
    assert world.now_s == pytest.approx(200 * SAMPLE_COST_S, rel=0.05)


def test_the_activity_is_left_for_status_and_names_the_pause(world, run, tmp_path) -> None:
    world.changes.append((7.0, LOW))
    run(5000, until_s=50.0)
    found = read_activity(tmp_path / "outbox")
    assert found is not None
    assert found.is_paused
    assert found.text == "paused: battery at 12 %, waits for 25 % or the charger"
    assert 7.0 <= found.since <= 7.0 + 2 * READ_EVERY_S


def test_the_activity_file_is_rewritten_at_a_change_of_state_and_seldom_for_other_words(tmp_path) -> None:
    now_s = 0.0
    file = ActivityFile(tmp_path, wall_s=lambda: now_s)
    written: list[Activity] = []
    steps = (
        (0.0, "running", False),
        (5.0, "paused: a", True),
        (6.0, "paused: b", True),
        (6.0 + REWRITE_AFTER_S, "paused: c", True),
    )
    for now_s, text, is_paused in steps:  # noqa: B007  (the clock above reads it)
        file.note(text, is_paused=is_paused)
        written.append(read_activity(tmp_path))
    assert [(one.text, one.since) for one in written] == [
        ("running", 0.0), ("paused: a", 5.0), ("paused: a", 5.0), ("paused: c", 5.0)
    ]  # fmt: skip
    file.close()
    assert read_activity(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"text":1}'])
def test_an_activity_file_that_makes_no_sense_is_none(tmp_path, content) -> None:
    (tmp_path / ACTIVITY_FILE).write_bytes(content)
    assert read_activity(tmp_path) is None


def test_what_a_process_that_is_gone_left_is_none(tmp_path) -> None:
    gone = Activity(text="running", is_paused=False, since=0.0, pid=2**22 + 1)
    (tmp_path / ACTIVITY_FILE).write_bytes(msgspec.json.encode(gone))
    assert read_activity(tmp_path) is None


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path) -> None:
    file = ActivityFile(tmp_path / "missing", wall_s=lambda: 0.0)
    file.note("running", is_paused=False)
    file.close()


def settings(**changes: object) -> RunSettings:
    return RunSettings(bundle="b", server="s", data="d", **changes)


def test_settings_become_limits_with_the_usual_ones_filled_in() -> None:
    assert limits_of(settings()) == Limits(20, False, 75, 10, None, None)
    assert limits_of(settings(min_battery=40, only_charging=True, max_cpu="50%")) == Limits(40, True, 75, 10, None, 0.5)
    assert limits_of(settings(no_governor=True, max_cpu=0.5)) == Limits(max_cpu=0.5)


def test_only_what_was_asked_for_and_cannot_be_read_is_mentioned() -> None:
    assert blind_spots(settings(), Reading()) == []
    asked = settings(min_battery=30, max_temperature=60, only_charging=True, max_memory_pressure=5, max_cpu_pressure=90)
    assert blind_spots(asked, replace(WELL, memory_available_percent=50, cpu_pressure_percent=0)) == []
    assert len(blind_spots(asked, Reading())) == 5
    assert blind_spots(settings(min_battery=30), Reading()) == [
        "no battery can be read on this machine, so --min-battery never pauses"
    ]


@pytest.mark.parametrize(("text", "share"), [("25%", 0.25), ("0.25", 0.25), (0.25, 0.25), ("150 %", 1.5), (1, 1.0)])
def test_shares_are_read_with_and_without_a_per_cent_sign(text, share) -> None:
    assert cpu_share(text) == share


@pytest.mark.parametrize("text", ["25", "0", "0%", "-5%", "a quarter", "", "1e3", float("nan"), 5000])
def test_other_shares_are_refused(text) -> None:
    with pytest.raises(UsageError, match="--max-cpu"):
        cpu_share(text)
