"""The demo's child processes: started with their own log files, watched, and never left behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sf_contract.command import say
from sf_contract.errors import SplitFrozenError, UsageError

POLL_S: Final = 0.25
GRACE_S: Final = 5.0
TAIL_LINES: Final = 15
STOP_SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

CHILD_ENVIRONMENT: Final[Mapping[str, str]] = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
"""Threads that wait for one another sleep instead of spinning: six processes share this machine."""

ONE_THREAD: Final[Mapping[str, str]] = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class ChildFailed(SplitFrozenError):
    """One of the demo's processes ended with an error."""


@dataclass(frozen=True, slots=True, eq=False)
class Child:
    """A running or finished process; results go to `stdout`, everything for people to `log`."""

    name: str
    process: subprocess.Popen[bytes]
    stdout: Path
    log: Path

    @property
    def is_running(self) -> bool:
        """True until it has ended."""
        return self.process.poll() is None

    def has_failed(self) -> bool:
        """True when it ended with another exit code than 0."""
        return self.process.poll() not in (None, 0)

    def tail(self) -> str:
        """The last lines it wrote for people."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-TAIL_LINES:])


class LogEcho:
    """Shows the lines of a log as they are written."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._shown_bytes = 0

    def update(self) -> None:
        """Show the lines completed since the last time."""
        with self._log.open("rb") as stream:
            stream.seek(self._shown_bytes)
            lines, newline, _ = stream.read().rpartition(b"\n")
        self._shown_bytes += len(lines) + len(newline)
        for line in lines.decode("utf-8", errors="replace").splitlines():
            say(f"  {line}")


class Crew:
    """All children of the demo. Leaving the `with` block stops those that still run.

    Each child leads its own process group, so that stopping it also stops the processes it started itself.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Child:
        """Start a command in the background."""
        stdout, log = self._logs / f"{name}.stdout", self._logs / f"{name}.log"
        with stdout.open("wb") as results, log.open("wb") as messages:
            process = subprocess.Popen(
                [find_program(command[0]), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=results,
                stderr=messages,
                env={**os.environ, **CHILD_ENVIRONMENT, **(environment or {})},
                start_new_session=True,
            )
        child = Child(name=name, process=process, stdout=stdout, log=log)
        self._children.append(child)
        return child

    def run(self, name: str, command: Sequence[str]) -> str:
        """Run a command to its end, showing what it says; returns what it printed on standard output."""
        say(f"$ {shlex.join(command)}")
        child = self.start(name, command)
        echo = LogEcho(child.log)
        self.wait_until(lambda: not child.is_running, while_waiting=echo.update)
        echo.update()
        return child.stdout.read_text(encoding="utf-8")

    def wait_until(self, condition: Callable[[], bool], *, while_waiting: Callable[[], None] = lambda: None) -> None:
        """Wait for a condition.

        Raises:
            ChildFailed: a child ended with an error meanwhile.
        """
        while not condition():
            self.check()
            while_waiting()
            time.sleep(POLL_S)
        self.check()

    def check(self) -> None:
        """Raise ChildFailed, after printing the end of its log, if a child has failed."""
        for child in self._children:
            if child.has_failed():
                say(f"--- the end of {child.log}\n{child.tail()}\n---")
                raise ChildFailed(
                    f"{child.name} ended with exit code {child.process.returncode}",
                    cure=f"correct what its last line names; the whole log is {child.log}",
                )

    def stop(self) -> None:
        """Ask every child's process group to end, and insist after a few seconds. Impatient Ctrl-Cs wait meanwhile."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._stop_all()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _stop_all(self) -> None:
        unfinished = [child for child in self._children if child.is_running or child.has_failed()]
        for child in unfinished:
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for child in unfinished:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            _signal_group(child, signal.SIGKILL)
            child.process.wait()
        self._children.clear()


def find_program(name: str) -> str:
    """Path of a command, preferring the one installed beside this Python.

    Raises:
        UsageError: it is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise UsageError(f"the command {name} is not installed", cure="pip install -e '.[dev]' in the repository")
    return found


def stop_on_signals() -> None:
    """Let `kill` and a closed terminal end the demo as Ctrl-C does, so that the children are stopped too."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in STOP_SIGNALS - {signal.SIGINT}:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)


def _signal_group(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)
