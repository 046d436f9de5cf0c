"""Real commands as real processes, for the system tests."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
POLL_S = 0.02


class Command:
    """A running command whose output goes to a file.

    Args:
        arguments: program and options; the program is looked up beside this Python.
        log: file for standard error.
    """

    def __init__(self, arguments: Sequence[object], log: Path, *, program_folder: Path = BIN) -> None:
        self.arguments = [str(program_folder / str(arguments[0])), *map(str, arguments[1:])]
        self.log = log
        self._stream = log.open("a", encoding="utf-8")
        self.process = subprocess.Popen(
            self.arguments,
            stdout=subprocess.PIPE,
            stderr=self._stream,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self._stream.close()

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self, *, timeout_s: float = 240) -> str:
        """Wait for a success and return standard output."""
        output, _ = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0, f"{self.arguments}: exit {self.process.returncode}\n{self.tail()}"
        return output

    def fail(self, *, timeout_s: float = 120) -> tuple[int, str]:
        """Wait for the end and return exit code and standard error."""
        self.process.communicate(timeout=timeout_s)
        return self.process.returncode, self.log.read_text(encoding="utf-8")

    def tail(self) -> str:
        """The end of standard error."""
        return "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-40:])

    def child(self, module: str) -> psutil.Process:
        """The child process that runs a module."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if module in child.cmdline():
                return child
        raise AssertionError(f"no child runs {module}\n{self.tail()}")

    def wait_until(self, condition: Callable[[], bool], what: str, *, timeout_s: float = 120) -> None:
        """Poll until a condition holds; fail when the command ends before."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}\n{self.tail()}"
            assert time.monotonic() < deadline_s, f"no {what} within {timeout_s} s\n{self.tail()}"
            time.sleep(POLL_S)


def bound_address(run: Path) -> str:
    """Where a run receives devices."""
    return str(json.loads((run / "ingest.json").read_text())["address"])


def stored_rows(run: Path) -> list[tuple[str, str, int, int, int]]:
    """Device, outbox, ordinal, label and tokens of every stored sample, as the file holds them."""
    path = run / "store.sqlite"
    if not path.exists():
        return []
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(
            "SELECT device, outbox, ordinal, label, tokens FROM samples ORDER BY device, ordinal"
        ).fetchall()
    except sqlite3.OperationalError:  # the tables are still being made
        return []
    finally:
        connection.close()


def last_step(run: Path) -> int:
    """Newest training step in the metrics."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return 0
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return int(json.loads(lines[-1])["step"]) if lines else 0
