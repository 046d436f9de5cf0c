"""`sf-edge run` as a guest: its priority, its processors, and what `sf-edge status` says about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sf_contract.errors import UsageError
from sf_edge.governor.activity import Activity
from sf_edge.governor.placement import parse_cpus
from sf_edge.status import activity_line


@pytest.mark.parametrize(("text", "cpus"), [("0", {0}), ("0-1", {0, 1}), ("0, 2-3", {0, 2, 3}), ("3,3", {3})])
def test_processors_are_numbers_and_ranges(text, cpus) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "0,,1", "0-99999", "9999", "0x1"])
def test_anything_else_is_no_list_of_processors(text) -> None:
    with pytest.raises(UsageError, match="no list of processors"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpus": "4095"}, "processors that this process may not use: 4095"),
        ({"cpus": "all"}, "no list of processors"),
        ({"max_cpu": "25"}, "write 25% or 0.25"),
        ({"min_battery": 30, "only_charging": True}, "--no-governor switches off --min-battery, --only-charging"),
        ({"no_governor": False, "max_temperature": 500}, "--max-temperature"),
        ({"nice": 30}, "--nice"),
    ],
)
def test_a_wish_that_cannot_be_kept_is_named(edge, server, changes, words) -> None:
    outcome = edge.run(server, edge.write(1), **changes)
    assert outcome.code == 2
    assert words in outcome.err


def test_a_running_device_gives_way_keeps_to_its_processors_and_shows_that_it_runs(edge, server) -> None:
    (cpu, *_) = os.sched_getaffinity(0)
    process = edge.start(server, edge.write(3), watch=True, nice=19, cpus=cpu, max_cpu="50%")
    server.wait_for(lambda: len(server.stored) == 3)
    threads = [int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()]
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {19}
    assert all(os.sched_getaffinity(thread) == {cpu} for thread in threads)
    (folder,) = (path.parent for path in edge.outbox.rglob("activity.json"))
    assert "uses at most 50% of a core, since" in edge.command("status", folder).out
    found = edge.command("status", folder, json=True).summary["activity"]
    assert (found["text"], found["is_paused"], found["pid"]) == ("uses at most 50% of a core", False, process.pid)
    process.terminate()
    process.communicate(timeout=30)
    assert "not running" in edge.command("status", folder).out
    assert edge.command("status", folder, json=True).summary["activity"] is None


def test_a_clock_that_went_back_gives_no_negative_time() -> None:
    activity = Activity(text="paused: runs on battery", is_paused=True, since=100.0, pid=1)
    assert activity_line(activity, wall_s=135.0) == "paused: runs on battery, since 35 s"
    assert activity_line(activity, wall_s=50.0) == "paused: runs on battery, since 0 s"
