"""The governor's decisions: what pauses, until what, and that nothing flaps or bursts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_edge.governor.decisions import (
    BURST_S,
    SHORTEST_PAUSE_S,
    DutyCycle,
    Governor,
    Limits,
    Pause,
    Reading,
    Run,
    Throttle,
)

LIMITS = Limits(
    min_battery_percent=20, max_temperature_c=75, max_memory_pressure_percent=10, max_cpu_pressure_percent=50
)
WELL = Reading(
    battery_percent=80, on_battery=True, temperature_c=40, memory_pressure_percent=0, cpu_pressure_percent=0,
    memory_available_percent=50,
)  # fmt: skip


def judged(*readings: Reading, limits: Limits = LIMITS, every_s: float = SHORTEST_PAUSE_S) -> Pause | None:
    """The pause after these readings."""
    governor = Governor(limits)
    for number, reading in enumerate(readings):
        governor.note(reading, number * every_s)
    return governor.pause()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"battery_percent": 12}, "battery at 12 %, waits for 25 % or the charger"),
        ({"temperature_c": 76}, "76 °C hot, waits for 70 °C"),
        ({"memory_pressure_percent": 11}, "memory pressure at 11 %, waits for 5 %"),
        ({"cpu_pressure_percent": 60}, "CPU pressure at 60 %, waits for 25 %"),
        (
            {"memory_pressure_percent": None, "memory_available_percent": 3},
            "3 % of the memory available, waits for 10 %",
        ),
        (
            {"battery_percent": 12, "temperature_c": 80},
            "battery at 12 % and 80 °C hot, waits for 25 % or the charger and 70 °C",
        ),
    ],
)
def test_what_pauses_says_why_and_until_what(change, words) -> None:
    assert judged(WELL) is None
    pause = judged(replace(WELL, **change))
    assert pause is not None
    assert pause.text() == words
    assert judged(replace(WELL, **change), limits=Limits()) is None


@pytest.mark.parametrize(
    ("bad", "still", "well"),
    [
        ({"battery_percent": 19.9}, {"battery_percent": 24.9}, {"battery_percent": 25}),
        ({"battery_percent": 19.9}, {"battery_percent": 20.0}, {"battery_percent": 15, "on_battery": False}),
        ({"temperature_c": 75.1}, {"temperature_c": 70.1}, {"temperature_c": 70}),
        ({"memory_pressure_percent": 10.1}, {"memory_pressure_percent": 5.1}, {"memory_pressure_percent": 5}),
        ({"cpu_pressure_percent": 50.1}, {"cpu_pressure_percent": 25.1}, {"cpu_pressure_percent": 25}),
        ({"temperature_c": 90}, {"temperature_c": 74}, {"temperature_c": None}),
    ],
)
def test_back_at_the_limit_is_not_enough_to_go_on(bad, still, well) -> None:
    assert judged(replace(WELL, **still)) is None, "without a pause before, this is good enough"
    assert judged(replace(WELL, **bad), replace(WELL, **still)) is not None
    assert judged(replace(WELL, **bad), replace(WELL, **well)) is None


def test_a_battery_on_the_charger_may_be_empty_unless_told_otherwise() -> None:
    empty = replace(WELL, battery_percent=3, on_battery=False)
    assert judged(empty) is None
    only_charging = replace(LIMITS, only_charging=True)
    assert judged(empty, limits=only_charging) is None
    pause = judged(WELL, limits=only_charging)
    assert pause is not None
    assert pause.text() == "runs on battery, waits for the charger"


def test_what_cannot_be_read_never_pauses() -> None:
    everything = Limits(20, only_charging=True, max_temperature_c=75, max_memory_pressure_percent=10, max_cpu=0.5)
    assert judged(Reading(), limits=everything) is None
    assert judged(replace(Reading(), battery_percent=1), limits=everything) is None, "nobody knows that it discharges"


def test_kernel_memory_pressure_counts_more_than_a_guess_from_free_memory() -> None:
    assert judged(replace(WELL, memory_available_percent=1)) is None


def test_a_pause_lasts_a_while_however_soon_all_is_well_and_keeps_its_beginning() -> None:
    governor = Governor(LIMITS)
    governor.note(replace(WELL, temperature_c=80), 100.0)
    governor.note(replace(WELL, battery_percent=5), 110.0)
    pause = governor.pause()
    assert pause is not None
    assert (pause.since_s, pause.reason) == (100.0, "battery at 5 %")
    governor.note(WELL, 100.0 + SHORTEST_PAUSE_S - 0.1)
    assert governor.pause() is not None
    governor.note(WELL, 100.0 + SHORTEST_PAUSE_S)
    assert governor.pause() is None


maybe_percent = st.none() | st.floats(0, 100)
readings = st.builds(
    Reading,
    battery_percent=maybe_percent,
    on_battery=st.none() | st.booleans(),
    temperature_c=st.none() | st.floats(-40, 149),
    memory_pressure_percent=maybe_percent,
    memory_available_percent=maybe_percent,
    cpu_pressure_percent=maybe_percent,
)
all_limits = st.builds(
    Limits,
    min_battery_percent=maybe_percent,
    only_charging=st.booleans(),
    max_temperature_c=st.none() | st.floats(20, 120),
    max_memory_pressure_percent=st.none() | st.floats(0.1, 100),
    max_cpu_pressure_percent=st.none() | st.floats(0.1, 100),
)


@given(all_limits, st.lists(st.tuples(st.floats(0.1, 20), readings), max_size=60))
def test_whatever_is_read_a_pause_is_explained_and_two_never_begin_within_the_shortest_pause(limits, steps) -> None:
    governor = Governor(limits)
    now_s, begun_s = 0.0, []
    for elapsed_s, reading in steps:
        now_s += elapsed_s
        before = governor.pause()
        governor.note(reading, now_s)
        pause = governor.pause()
        decided = governor.decide(now_s=now_s, cpu_s=0.0)
        assert decided == (pause or Run())
        if pause is None:
            continue
        assert pause.reason
        assert pause.until
        if before is None:
            assert pause.since_s == now_s
            begun_s.append(now_s)
    gaps = [later - earlier for earlier, later in itertools.pairwise(begun_s)]
    assert all(gap >= SHORTEST_PAUSE_S for gap in gaps)


@given(
    share=st.floats(0.01, 4),
    steps=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 30)), min_size=1, max_size=80),
)
def test_no_stretch_of_time_holds_more_work_than_its_share_and_one_step(share, steps) -> None:
    """Steps of some CPU seconds, each after a wait of its own and the rest that was asked for."""
    duty = DutyCycle(share)
    now_s, cpu_s = 0.0, 0.0
    log = [(now_s, cpu_s)]
    for used_s, waited_s in steps:
        now_s += waited_s
        until_s = duty.rest_until_s(now_s=now_s, cpu_s=cpu_s)
        now_s = now_s if until_s is None else until_s
        log.append((now_s, cpu_s))
        now_s += used_s
        cpu_s += used_s
    longest_step_s = max(used_s for used_s, _ in steps)
    for (begin_s, before_s), (end_s, after_s) in itertools.combinations(log, 2):
        assert after_s - before_s <= share * (end_s - begin_s + BURST_S) + longest_step_s + 1e-6


def test_a_long_idle_time_earns_no_burst() -> None:
    duty = DutyCycle(0.25)
    duty.rest_until_s(now_s=0.0, cpu_s=0.0)
    assert duty.rest_until_s(now_s=1000.0, cpu_s=0.0) is None
    assert duty.rest_until_s(now_s=1001.0, cpu_s=1.0) == pytest.approx(1001.0 + (1.0 - 0.25 - 0.25 * BURST_S) / 0.25)


def test_a_rest_is_as_long_as_it_must_be_and_told_since_its_beginning() -> None:
    governor = Governor(Limits(max_cpu=0.25))
    assert governor.decide(now_s=0.0, cpu_s=10.0) == Run(), "what loading cost is not held against it"
    resting = governor.decide(now_s=1.0, cpu_s=11.0)
    assert resting == Throttle(max_cpu=0.25, until_s=4.0, since_s=1.0)
    assert governor.decide(now_s=2.0, cpu_s=11.0) == Throttle(max_cpu=0.25, until_s=4.0, since_s=1.0)
    assert governor.decide(now_s=4.0, cpu_s=11.0) == Run()


def test_while_paused_a_rest_is_not_what_is_told() -> None:
    governor = Governor(Limits(max_cpu=0.25, max_temperature_c=75))
    governor.note(Reading(temperature_c=80), 0.0)
    governor.decide(now_s=0.0, cpu_s=0.0)
    assert isinstance(governor.decide(now_s=1.0, cpu_s=1.0), Pause)
