"""`sf-server status`: the table, the line for logs, and JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from sf_server.amounts import age, byte_amount
from sf_server.main import main
from sf_server.seeing.reading import RunReader
from sf_server.seeing.state import DeviceStatus, Phase, RunState
from sf_server.seeing.status_command import watch
from sf_server.seeing.table import one_line, run_table, sparkline
from support.seen_run import SeenRun

NOW_S = 1_000_000.0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[SeenRun]:
    made = SeenRun(tmp_path, now_s=NOW_S)
    for name in ("phone", "pi-3"):
        made.hello(name)
        made.samples(name, 40)
    made.heard("pi-3", activity="paused: battery at 12 %", bytes_in=1_230_000)
    made.finished("phone", skipped=7)
    made.steps(6, epoch=2)
    made.validation(epoch=1, accuracy=0.75, loss=0.5)
    yield made
    made.close()


def _state(run: SeenRun) -> RunState:
    with RunReader(run.path, clock=lambda: NOW_S + 5) as reader:
        return reader.read()


def _drawn(state: RunState, *, height: int | None = None, width: int = 140) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(run_table(state, height=height))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_the_table_shows_what_matters(run: SeenRun) -> None:
    lines = _drawn(_state(run))
    assert any(line.startswith("phase") and "stopped in epoch 2 of 3" in line for line in lines)
    assert any("accuracy 75.0% (always the commonest answer: 50.0%)" in line for line in lines)
    assert any("about" in line and "backward" in line for line in lines)
    (paused,) = (line for line in lines if line.startswith("pi-3"))
    assert paused.split() == [
        "pi-3",
        "4",
        "paused:",
        "battery",
        "at",
        "12",
        "%",
        "40",
        "-",
        "1.23",
        "MB",
        "4.1",
        "kB",
        "0",
        "0",
        "5",
        "s",
        "ago",
    ]
    (finished,) = (line for line in lines if line.startswith("phone"))
    assert " finished " in finished


def test_a_narrow_terminal_loses_no_device(run: SeenRun) -> None:
    lines = _drawn(_state(run), width=60)
    assert all(len(line) <= 60 for line in lines)
    assert any(line.startswith("pi-3") for line in lines)


def test_with_too_many_devices_those_that_need_nobody_are_left_out_first(run: SeenRun) -> None:
    state = _state(run)
    paused, finished = (device for device in reversed(state.devices))
    assert (paused.status, finished.status) == (DeviceStatus.PAUSED, DeviceStatus.FINISHED)
    many = tuple(msgspec.structs.replace(finished, name=f"d{n}") for n in range(50))
    lines = _drawn(msgspec.structs.replace(state, devices=(*many, paused)), height=30)
    assert len(lines) <= 30
    assert any(line.startswith("pi-3") for line in lines)
    assert lines[-1].startswith("and 35 more devices")


def test_markup_in_what_devices_say_is_shown_and_not_obeyed(run: SeenRun) -> None:
    state = _state(run)
    device = msgspec.structs.replace(state.devices[0], reason="[bold red]paused[/]")
    assert any("[bold red]paused[/]" in line for line in _drawn(msgspec.structs.replace(state, devices=(device,))))


def test_the_line_for_logs_says_the_same_in_short(run: SeenRun) -> None:
    assert one_line(_state(run)).startswith("stopped in epoch 2 of 3, step 6, loss 0.9")
    assert one_line(_state(run)).endswith("80 samples stored, 1 of 2 devices finished")


def test_the_command_prints_the_table_or_one_document(run: SeenRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--run", str(run.path)]) == 0
    assert "pi-3" in capsys.readouterr().out
    assert main(["status", "--run", str(run.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["progress"]["step"] == 6
    assert {device["name"] for device in document["devices"]} == {"pi-3", "phone"}


def test_watching_ends_when_the_run_is_done(run: SeenRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.done()
    assert main(["status", "--run", str(run.path), "--watch"]) == 0
    assert capsys.readouterr().out.startswith("done, 3 epochs, step 6")


def test_watching_goes_on_while_the_run_is_stopped_or_trains(run: SeenRun) -> None:
    state = _state(run)
    phases = iter([Phase.TRAINING, Phase.STOPPED, Phase.WAITING, Phase.DONE])
    shown: list[Phase] = []
    waits: list[None] = []
    watch(
        lambda: msgspec.structs.replace(state, phase=next(phases)),
        lambda seen: shown.append(seen.phase),
        wait=lambda: waits.append(None),
    )
    assert shown == [Phase.TRAINING, Phase.STOPPED, Phase.WAITING, Phase.DONE]
    assert len(waits) == 3


def test_no_run_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--run", str(tmp_path)]) == 2
    assert "there is no run" in capsys.readouterr().err


def test_a_curve_is_drawn_in_blocks() -> None:
    assert sparkline([1, 0, 1, 0.5], width=4) == "█▁█▅"
    assert sparkline([1.0] * 5, width=3) == "▁▁▁"
    assert sparkline([]) == ""
    assert len(sparkline(list(range(1000)), width=60)) == 60


def test_amounts_are_told_with_three_digits() -> None:
    assert [byte_amount(n) for n in (0, 999, 1000, 999_499, 1_234_567, 5e20)] == [
        "0 B", "999 B", "1 kB", "999 kB", "1.23 MB", "500 EB",
    ]  # fmt: skip
    assert [age(0, s) for s in (-1, 5, 119, 120, 7_300, 200_000)] == ["0 s", "5 s", "119 s", "2 min", "2 h", "2 d"]
