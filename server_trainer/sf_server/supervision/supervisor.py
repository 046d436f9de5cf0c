"""The supervisor: starts ingest and trainer, starts them again when they crash, and ends them together.

Onlookers (the dashboard) are started beside them and looked after too, but the run never depends on one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sf_contract.errors import TrainingFailed
from sf_server.supervision.restarts import RestartPolicy, describe_exit, is_killed, is_known_failure
from sf_server.supervision.signals import SignalWatch

SAVE_S: Final = 120.0
"""A trainer that was told to stop may take so long to save."""

STOP_INGEST_S: Final = 10.0
STOP_ONLOOKER_S: Final = 5.0
NEVER_S: Final = float("inf")
EXIT_BY_SIGNAL: Final = 128

Say = Callable[[str], None]


def ingest_command(run: Path, *, as_json: bool = False) -> tuple[str, ...]:
    """How the ingest process is started; `as_json` is for its errors."""
    return _child_command("sf_server.ingest.process", run, as_json=as_json)


def trainer_command(run: Path, *, as_json: bool = False, processes: int = 1) -> tuple[str, ...]:
    """How the trainer process is started, or what starts several of them; `as_json` is for its errors."""
    module = "sf_server.training.process" if processes == 1 else "sf_server.scale.launch_process"
    return _child_command(module, run, as_json=as_json)


def dashboard_command(run: Path, *, as_json: bool = False) -> tuple[str, ...]:
    """How the process that serves dashboard and metrics is started; `as_json` is for its errors."""
    return _child_command("sf_server.seeing.process", run, as_json=as_json)


def _child_command(module: str, run: Path, *, as_json: bool) -> tuple[str, ...]:
    command = (sys.executable, "-m", module, "--run", str(run))
    return (*command, "--json") if as_json else command


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient the supervisor is."""

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    save_s: float = SAVE_S
    stop_ingest_s: float = STOP_INGEST_S


class Child:
    """One process, started again under the same name. Its standard input is a pipe that closes when we are gone.

    It gets a session of its own, so that Ctrl-C reaches only the supervisor, and it inherits the run folder's lock, where it
    gets one.
    """

    def __init__(self, name: str, command: Sequence[str], *, lock: int | None) -> None:
        self.name = name
        self.crashes_s: list[float] = []
        self.start_at_s = float("-inf")
        self._command = command
        self._inherited = () if lock is None else (lock,)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """True from `start` until `ended` has given its exit code."""
        return self._process is not None

    def start(self) -> None:
        """Start it now."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, pass_fds=self._inherited, start_new_session=True
        )

    def ended(self) -> int | None:
        """Its exit code, once, when it has ended by itself."""
        exit_code = None if self._process is None else self._process.poll()
        if exit_code is not None:
            self._release()
        return exit_code

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code when it ends within that time."""
        if self._process is None:
            return None
        try:
            exit_code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._release()
        return exit_code

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self, timeout_s: float) -> int | None:
        """Ask it to end, insist after that time; its exit code, None when it did not run."""
        if self._process is None:
            return None
        self._process.terminate()
        exit_code = self.wait(timeout_s)
        if exit_code is None:
            self._process.kill()
            exit_code = self._process.wait()
            self._release()
        return exit_code

    def _release(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None


def supervise(
    *,
    ingest: Sequence[str],
    trainer: Sequence[str],
    lock: int,
    say: Say,
    onlookers: Mapping[str, Sequence[str]] | None = None,
    memory_cure: str | None = None,
    timing: Timing | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run both processes until the trainer ends; the exit code of the whole.

    Args:
        ingest: command of the ingest process.
        trainer: command of the trainer process.
        lock: descriptor of the run folder's lock, which the children inherit.
        say: takes a line for the person watching.
        onlookers: commands by name of processes that the run goes on without.
        memory_cure: what to do when a trainer was killed, should memory be the reason.

    Returns:
        0 when training is complete, the exit code of a child that ended with one of our errors (it has said why), or
        128 + signal after SIGTERM or SIGINT.

    Raises:
        TrainingFailed: one of them keeps crashing.
    """
    pair = _Pair(
        ingest=Child("ingest", ingest, lock=lock),
        trainer=Child("trainer", trainer, lock=lock),
        onlookers=tuple(Child(name, command, lock=None) for name, command in (onlookers or {}).items()),
        timing=timing or Timing(),
        clock=clock,
        say=say,
        memory_cure=memory_cure,
    )
    with SignalWatch() as signals:
        try:
            return pair.run(signals)
        finally:
            pair.stop()


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    ingest: Child
    trainer: Child
    onlookers: tuple[Child, ...]
    timing: Timing
    clock: Callable[[], float]
    say: Say
    memory_cure: str | None = None

    def run(self, signals: SignalWatch) -> int:
        while True:
            signals.wait(self._start_what_is_due())
            if signals.stop_signals:
                return self._end_by_signal(signals)
            self._look_after_onlookers()
            exit_code = self._look_after_trainer()
            if exit_code is None:
                exit_code = self._look_after_ingest()
            if exit_code is not None:
                return exit_code

    def stop(self) -> None:
        """End what still runs: the trainer first, so that devices are answered as long as possible; onlookers see the end."""
        self.trainer.stop(self.timing.save_s)
        self.ingest.stop(self.timing.stop_ingest_s)
        for onlooker in self.onlookers:
            onlooker.stop(STOP_ONLOOKER_S)

    def _start_what_is_due(self) -> float | None:
        """Start children whose time has come; seconds until the next, None when there is nothing to start."""
        waits: list[float] = []
        for child in (self.ingest, self.trainer, *self.onlookers):
            wait_s = child.start_at_s - self.clock()
            if not child.runs and wait_s > 0:
                waits.extend([wait_s] if wait_s < NEVER_S else [])
            elif not child.runs:
                child.start()
        return min(waits, default=None)

    def _look_after_trainer(self) -> int | None:
        exit_code = self.trainer.ended()
        if exit_code is None:
            return None
        if exit_code == 0:
            self.ingest.tell(signal.SIGUSR1)
            self.ingest.wait(self.timing.stop_ingest_s)
            return 0
        return self._after_failure(self.trainer, exit_code, "from its last checkpoint")

    def _look_after_ingest(self) -> int | None:
        exit_code = self.ingest.ended()
        return None if exit_code is None else self._after_failure(self.ingest, exit_code, "with what is stored")

    def _look_after_onlookers(self) -> None:
        for onlooker in self.onlookers:
            exit_code = onlooker.ended()
            if exit_code is not None:
                self._after_end_of_onlooker(onlooker, exit_code)

    def _after_end_of_onlooker(self, child: Child, exit_code: int) -> None:
        child.crashes_s.append(self.clock())
        delay_s = self.timing.policy.delay_s(child.crashes_s, now_s=self.clock())
        ended = f"the {child.name} process ended unexpectedly ({describe_exit(exit_code)})"
        if delay_s is None or is_known_failure(exit_code):
            self.say(f"{ended} and is not started again; the run goes on without it")
            child.start_at_s = NEVER_S
        else:
            self.say(f"{ended}; it is started again in {delay_s:g} s, the run goes on")
            child.start_at_s = self.clock() + delay_s

    def _after_failure(self, child: Child, exit_code: int, how: str) -> int | None:
        if is_known_failure(exit_code):
            return exit_code
        child.crashes_s.append(self.clock())
        delay_s = self.timing.policy.delay_s(child.crashes_s, now_s=self.clock())
        ended = f"the {child.name} process ended unexpectedly ({describe_exit(exit_code)})"
        memory = self.memory_cure if child is self.trainer and is_killed(exit_code) else None
        if delay_s is None:
            raise TrainingFailed(
                f"{ended}, as it did {len(child.crashes_s) - 1} times before",
                cure=f"{memory or 'read the messages above'}; nothing stored is lost, --resume goes on with the run",
            )
        self.say(
            f"{ended}; it is started again in {delay_s:g} s {how}" + (f"; if that goes on, {memory}" if memory else "")
        )
        child.start_at_s = self.clock() + delay_s
        return None

    def _end_by_signal(self, signals: SignalWatch) -> int:
        """Let the trainer save and leave; it is ended at once by a second signal, or when it takes too long."""
        self.say("stopping: the trainer saves its state, --resume goes on from there (once more to stop at once)")
        self.trainer.tell(signal.SIGTERM)
        end_s = self.clock() + self.timing.save_s
        exit_code = self.trainer.ended()
        while self.trainer.runs and len(signals.stop_signals) == 1 and self.clock() < end_s:
            signals.wait(end_s - self.clock())
            exit_code = self.trainer.ended()
        self.trainer.stop(0)
        if exit_code is not None and (exit_code == 0 or is_known_failure(exit_code)):
            return exit_code
        return EXIT_BY_SIGNAL + signals.stop_signals[0]
