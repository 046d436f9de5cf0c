"""A worker as the measuring process sees it: started, asked one thing at a time, idle in between."""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from sf_bench.rivals.protocol import Job, encode_job
from sf_contract.errors import UsageError

OPEN_TIMEOUT_S: Final = 900.0
TURN_TIMEOUT_S: Final = 300.0
_QUIT_TIMEOUT_S: Final = 10.0
_READ_BYTES: Final = 1 << 16


class WorkerFailed(Exception):
    """A worker cannot go on; the text says why. It becomes a row of the table, not the end of the comparison."""


class Interpreter(msgspec.Struct, frozen=True):
    """A Python program to run a worker with.

    Attributes:
        python: its path.
        packages: folder to import from, for another environment; None for this one, where everything is installed.
    """

    python: str
    packages: Path | None = None


def foreign_interpreter(python: str, work: Path) -> Interpreter:
    """Another environment's interpreter, which sees this package and nothing else of ours.

    `work/packages` gets a link to the package, so that no library of this environment reaches the other one.
    """
    packages = work / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    link = packages / "sf_bench"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(__file__).resolve().parents[1], target_is_directory=True)
    return Interpreter(python=python, packages=packages)


def worker_environment(
    interpreter: Interpreter, *, threads: int, limits: Mapping[str, str], base: Mapping[str, str]
) -> dict[str, str]:
    """Environment of a worker: thread counts, instruction limits, and no usage reports to anyone."""
    environment = dict(base)
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    environment |= {**counts, **limits, "OMP_WAIT_POLICY": "PASSIVE", "NNCF_CI": "1", "CI": "true"}
    if interpreter.packages is not None:
        environment["PYTHONPATH"] = str(interpreter.packages)
        environment.pop("VIRTUAL_ENV", None)
    return environment


def check_packages(
    interpreter: Interpreter, *, runtime: str, packages: Sequence[str], pip_names: Mapping[str, str]
) -> None:
    """Find out, without importing them, whether an interpreter has the packages a runtime needs.

    Raises:
        UsageError: the interpreter does not run, or lacks one.
    """
    if interpreter.packages is None:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
    else:
        missing = _missing_elsewhere(interpreter.python, packages)
    if missing:
        wanted = " ".join(pip_names.get(name, name) for name in missing)
        raise UsageError(
            f"{wanted.partition(' ')[0]} is not installed for {interpreter.python}",
            cure=f"pip install {wanted}, or name an interpreter that has it: --python {runtime}=DIR/bin/python",
        )


def _missing_elsewhere(python: str, packages: Sequence[str]) -> list[str]:
    script = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n) is None])"
    try:
        done = subprocess.run([python, "-c", script, *packages], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as problem:
        raise UsageError(f"{python} is no Python interpreter: {problem}", cure="give DIR/bin/python") from problem
    return done.stdout.split()


class Turn(msgspec.Struct, frozen=True):
    """Seconds of each sequence in one turn: on the clock, and of the processor."""

    wall_s: tuple[float, ...]
    cpu_s: tuple[float, ...]


class Worker:
    """A running worker. Close it, or use it as a context manager."""

    def __init__(self, job: Job, *, python: str, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [python, "-m", "sf_bench.rivals.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=dict(environment),
            )
        self._unread = b""
        try:
            self.version = str(self._ask(encode_job(job), OPEN_TIMEOUT_S)["version"])
        except WorkerFailed:
            self.close()
            raise

    def turn(self) -> Turn:
        """Times per sequence, every sequence once.

        Raises:
            WorkerFailed: the worker said so, ended, or did not answer in time; `rows` and `memory_mb` likewise.
        """
        return msgspec.convert(self._ask("turn", TURN_TIMEOUT_S), Turn)

    def rows_shape(self) -> tuple[int, int]:
        """Have the rows of all sequences written to the job's `rows_file`; their shape."""
        return msgspec.convert(self._ask("rows", TURN_TIMEOUT_S)["shape"], tuple[int, int])

    def memory_mb(self) -> float | None:
        """Memory of the worker in RAM, where the system tells."""
        return msgspec.convert(self._ask("memory", TURN_TIMEOUT_S)["memory_mb"], float | None)

    def close(self) -> None:
        """End the worker; it leaves by itself when its input ends."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        try:
            self._process.wait(_QUIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: str, timeout_s: float) -> dict[str, object]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as problem:
            raise WorkerFailed(self._obituary()) from problem
        reply = msgspec.json.decode(self._line(timeout_s), type=dict[str, object])
        if "failed" in reply:
            raise WorkerFailed(f"{reply['failed']} (log: {self._log})")
        return reply

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._process.stdout], [], [], left_s)[0]:
                raise WorkerFailed(f"no answer within {timeout_s:.0f} s (log: {self._log})")
            chunk = os.read(self._process.stdout.fileno(), _READ_BYTES)
            if not chunk:
                raise WorkerFailed(self._obituary())
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _obituary(self) -> str:
        code = self._process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the worker {how} (log: {self._log})"
