from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_contract.errors import AlreadyRunning, TrainingFailed
from sf_server.run_folder import RunFolder
from sf_server.supervision.restarts import RestartPolicy, describe_exit, is_known_failure
from sf_server.supervision.supervisor import Child, Timing, supervise

PATIENCE_S = 20.0
QUICK = Timing(
    policy=RestartPolicy(restarts=3, window_s=600, first_delay_s=0.001),
    save_s=3600,
    stop_ingest_s=PATIENCE_S,
)

CHILD = """
import os, signal, sys, time
diary, *plan = sys.argv[1:]

def write(word):
    with open(diary, "a") as stream:
        stream.write(word + "\\n")

def told(*unused):
    write("told to stop")
    sys.exit(143)

def complete(*unused):
    write("training is complete")
    sys.exit(0)

signal.signal(signal.SIGTERM, told)
signal.signal(signal.SIGUSR1, complete)
with open(diary, "a+") as stream:
    stream.seek(0)
    starts = stream.read().count("started")
write("started")
step = plan[min(starts, len(plan) - 1)]
if step.startswith("after "):
    _, wanted, step = step.split(" ", 2)
    other = os.path.join(os.path.dirname(diary), "dashboard" if step.startswith("looked at ") else "ingest")
    step = step.removeprefix("looked at ")
    while not os.path.exists(other) or open(other).read().count("started") < int(wanted):
        time.sleep(0.01)
if step == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if step.startswith("stubborn "):
    number = int(step.split()[-1])
    signal.signal(signal.SIGTERM, lambda *unused: os.kill(os.getppid(), number))
    os.kill(os.getppid(), number)
if step.startswith("signal parent "):
    os.kill(os.getppid(), int(step.split()[-1]))
if step.isdigit():
    sys.exit(int(step))
while True:
    signal.pause()
"""


@dataclass
class Stage:
    """Children that follow a plan, one step per start, and keep a diary.

    Steps: an exit code, "killed", "stay", "signal parent N", "stubborn N" (answers SIGTERM with a signal of its own),
    and any of them "after N " starts of ingest, or "after N looked at " starts of the dashboard.
    """

    folder: Path
    lines: list[str] = field(default_factory=list)

    def child(self, name: str, *plan: str) -> list[str]:
        return [sys.executable, "-S", "-c", CHILD, str(self.folder / name), *plan]

    def run(
        self,
        *,
        ingest: tuple[str, ...] = ("stay",),
        trainer: tuple[str, ...],
        dashboard: tuple[str, ...] | None = None,
        stop_when: str | None = None,
    ) -> int:
        with RunFolder(self.folder / "run").lock() as lock:
            return supervise(
                ingest=self.child("ingest", *ingest),
                trainer=self.child("trainer", *trainer),
                lock=lock,
                say=lambda line: self.note(line, stop_when),
                onlookers={} if dashboard is None else {"dashboard": self.child("dashboard", *dashboard)},
                timing=QUICK,
                memory_cure="lower --batch-tokens (now 2048; try 1024)",
            )

    def note(self, line: str, stop_when: str | None) -> None:
        self.lines.append(line)
        if stop_when is not None and stop_when in line:
            os.kill(os.getpid(), signal.SIGTERM)

    def diary(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_when_training_is_complete_ingest_is_told_so_and_ends_by_itself(stage: Stage) -> None:
    assert stage.run(trainer=("after 1 0",)) == 0
    assert stage.diary("ingest") == ["started", "training is complete"]
    assert stage.lines == []


def test_a_trainer_that_crashes_is_started_again_and_it_is_said(stage: Stage) -> None:
    assert stage.run(trainer=("killed", "1", "0")) == 0
    assert stage.diary("trainer") == ["started"] * 3
    first, second = stage.lines
    assert "SIGKILL" in first
    assert "out-of-memory killer is the usual reason" in first
    assert "lower --batch-tokens (now 2048; try 1024)" in first
    assert "exit code 1" in second
    assert "--batch-tokens" not in second
    assert "last checkpoint" in second


def test_an_ingest_that_crashes_is_started_again_while_the_trainer_goes_on(stage: Stage) -> None:
    assert stage.run(ingest=("killed", "stay"), trainer=(f"after 2 signal parent {signal.SIGTERM:d}",)) == 143
    assert stage.diary("ingest").count("started") == 2
    assert stage.diary("trainer") == ["started", "told to stop"]


def test_an_ingest_that_ends_without_being_told_counts_as_crashed(stage: Stage) -> None:
    assert stage.run(ingest=("0", f"signal parent {signal.SIGTERM:d}"), trainer=("stay",)) == 143
    assert "exit code 0" in stage.lines[0]


def test_who_looks_on_sees_the_end_and_then_is_told_to_stop(stage: Stage) -> None:
    assert stage.run(trainer=("after 1 looked at 0",), dashboard=("stay",)) == 0
    assert stage.diary("dashboard") == ["started", "told to stop"]
    assert stage.lines == []


def test_an_onlooker_that_keeps_crashing_is_given_up_and_the_run_goes_on(stage: Stage) -> None:
    assert stage.run(trainer=("stay",), dashboard=("killed", "1"), stop_when="not started again") == 143
    assert stage.diary("dashboard") == ["started"] * 4
    assert stage.diary("trainer") == ["started", "told to stop"]
    *again, last, _ = stage.lines
    assert ["the run goes on" in line for line in again] == [True] * 3
    assert "the run goes on without it" in last


def test_an_onlooker_whose_port_is_taken_is_not_tried_again(stage: Stage) -> None:
    assert stage.run(trainer=("stay",), dashboard=("18",), stop_when="exit code 18") == 143
    assert stage.diary("dashboard") == ["started"]
    assert "the run goes on without it" in stage.lines[0]


def test_an_onlooker_does_not_hold_the_run(stage: Stage) -> None:
    """One that outlives everything else must not keep a resume waiting."""
    child = Child("dashboard", [sys.executable, "-S", "-c", "import os; os.read(0, 1)"], lock=None)
    with RunFolder(stage.folder / "run").lock():
        child.start()
    with RunFolder(stage.folder / "run").lock():
        child.stop(PATIENCE_S)


@pytest.mark.parametrize("who", ["ingest", "trainer"])
def test_a_process_that_keeps_crashing_ends_the_run_and_the_other_process(stage: Stage, who: str) -> None:
    plans = {"ingest": ("stay",), "trainer": ("stay",), who: ("1",)}
    with pytest.raises(TrainingFailed, match="3 times before") as raised:
        stage.run(**plans)
    assert who in raised.value.what
    assert stage.diary(who) == ["started"] * 4
    with RunFolder(stage.folder / "run").lock():
        pass  # nobody is left who holds it


def test_a_trainer_that_is_killed_again_and_again_ends_with_the_setting_to_lower(stage: Stage) -> None:
    with pytest.raises(TrainingFailed, match="SIGKILL") as raised:
        stage.run(trainer=("killed",))
    assert "lower --batch-tokens (now 2048; try 1024)" in raised.value.cure


@pytest.mark.parametrize("code", [2, 10, 18, 23, 24])
@pytest.mark.parametrize("who", ["ingest", "trainer"])
def test_a_known_failure_is_passed_on_without_another_try(stage: Stage, who: str, code: int) -> None:
    plans = {"ingest": ("stay",), "trainer": ("stay",), who: (str(code),)}
    assert stage.run(**plans) == code
    assert stage.diary(who) == ["started"]
    assert stage.lines == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_trainer_save_and_then_ends_ingest(stage: Stage, number: int, code: int) -> None:
    assert stage.run(trainer=(f"signal parent {number:d}",)) == code
    assert stage.diary("trainer") == ["started", "told to stop"]
    assert "--resume" in stage.lines[0]


def test_a_second_signal_ends_a_trainer_that_does_not_leave(stage: Stage) -> None:
    assert stage.run(trainer=(f"stubborn {signal.SIGINT:d}",)) == 130
    assert stage.diary("trainer") == ["started"]


def test_former_signal_handlers_come_back(stage: Stage) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    stage.run(trainer=("0",))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == before


PROGRAM = """
import sys
from pathlib import Path
from sf_server.run_folder import RunFolder
from sf_server.supervision.supervisor import supervise
child = [sys.executable, "-c", sys.argv[2]]
with RunFolder(Path(sys.argv[1])).lock() as lock:
    supervise(ingest=child, trainer=child, lock=lock, say=print)
"""


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    return tmp_path / "run"


@contextmanager
def _supervisor_of(run: Path, child: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, str(run), child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert [process.stdout.readline(), process.stdout.readline()] == ["ready\n"] * 2
            yield process
        finally:
            process.kill()


def test_after_kill_9_of_the_supervisor_its_children_leave_and_the_run_is_free(run_path: Path) -> None:
    child = (
        "import os, signal; from sf_server.supervision.parent import leave_with_parent; leave_with_parent(); "
        "os.write(1, b'ready\\n'); signal.pause()"
    )
    with _supervisor_of(run_path, child) as supervisor:
        folder = RunFolder(run_path)
        with pytest.raises(AlreadyRunning, match="another sf-server train"), folder.lock():
            pass
        supervisor.kill()
        with folder.lock(wait_s=PATIENCE_S):
            pass


def test_the_run_stays_locked_as_long_as_a_child_of_a_killed_supervisor_lives(run_path: Path) -> None:
    child = "import os; gate = open(%r); os.write(1, b'ready\\n'); os.read(0, 1); os.write(1, b'alone\\n'); gate.read()"
    path = run_path.parent / "gate"
    os.mkfifo(path)
    gate = os.open(path, os.O_RDWR)
    with _supervisor_of(run_path, child % str(path)) as supervisor:
        supervisor.kill()
        assert supervisor.stdout is not None
        assert [supervisor.stdout.readline(), supervisor.stdout.readline()] == ["alone\n"] * 2
        folder = RunFolder(run_path)
        with pytest.raises(AlreadyRunning), folder.lock():
            pass
        os.close(gate)
        with folder.lock(wait_s=PATIENCE_S):
            pass


@given(st.lists(st.floats(0, 1000), max_size=20), st.floats(0, 2000))
def test_more_crashes_never_bring_a_sooner_start(former: list[float], now_s: float) -> None:
    policy = RestartPolicy()
    fewer = policy.delay_s([*former, now_s], now_s=now_s)
    more = policy.delay_s([*former, now_s, now_s], now_s=now_s)
    assert more is None or (fewer is not None and fewer < more)


def test_crashes_long_ago_are_forgiven() -> None:
    policy = RestartPolicy(restarts=1, window_s=600, first_delay_s=1)
    assert policy.delay_s([0, 700], now_s=700) == 1
    assert policy.delay_s([650, 700], now_s=700) is None


def test_our_errors_are_known_failures_and_crashes_are_not() -> None:
    assert [code for code in range(-20, 256) if is_known_failure(code)] == [2, *range(10, 28)]


def test_an_ending_is_described_for_people() -> None:
    assert describe_exit(1) == "exit code 1"
    assert describe_exit(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert describe_exit(-63) == "killed by signal 63"
