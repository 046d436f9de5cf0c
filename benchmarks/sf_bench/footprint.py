"""What `sf-edge` costs a device when it does little: start, memory, and processor time while it waits.

A real `sf-edge run --watch` process, a real ingest on this machine, and what Linux says about the process in `/proc`.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.ingest_only import running_ingest
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.errors import DataError, UsageError
from sf_contract.messages import Role
from sf_contract.records import Row, read_records
from sf_server.run_folder import RunFolder
from sf_server.store.store import Store

_POLL_S: Final = 0.01
_PATIENCE_S: Final = 300.0
_SETTLE_S: Final = 5.0
_SIZES: Final = """
import importlib.metadata as m, json, sys
sizes = {}
for each in m.distributions():
    files = [each.locate_file(file) for file in each.files or ()]
    sizes[each.metadata["Name"].lower()] = sum(file.stat().st_size for file in files if file.is_file())
print(json.dumps(sizes))
"""
_EDGE: Final = "import sys; from sf_edge.main import main; sys.exit(main())"


class Plan(msgspec.Struct, frozen=True):
    """What to measure.

    Attributes:
        bundle: bundle folder.
        data: rows in the bundle's form; repeated where more are needed.
        python: interpreter of the environment that the device has.
        starts: how often it is started.
        idle_s: how long it is watched while it has nothing to do.
        busy_s: how long it is watched at `rows_per_s`.
        rows_per_s: rows appended to the data file per second.
        options: further options of `sf-edge run`.
    """

    bundle: Path
    data: Path
    python: Path
    starts: int
    idle_s: float
    busy_s: float
    rows_per_s: float
    options: tuple[str, ...]


class Memory(msgspec.Struct, frozen=True):
    """Resident memory in MB (millions of bytes): all, and that part of it which is the process's own (not mapped files)."""

    rss_mb: float
    anonymous_mb: float


class Footprint(msgspec.Struct, frozen=True):
    """One bundle's device process on this machine.

    Attributes:
        packages: MB of every package of the environment, as its list of files says.
        graph_mb: the bundle's graph, whose weights are in memory while the process runs.
        start_s: median seconds from starting the process until the server had stored its first row.
        starts_s: all of them.
        memory: idle, after the first rows.
        peak_rss_mb: the most it ever had.
        idle_cpu_percent: of one core, while it waits for rows.
        busy_cpu_percent: of one core, at `rows_per_s`.
        busy_rows_per_s: rows stored per second then.
        threads: of the process.
    """

    packages: dict[str, float]
    graph_mb: float
    start_s: float
    starts_s: tuple[float, ...]
    memory: Memory
    peak_rss_mb: float
    idle_cpu_percent: float
    busy_cpu_percent: float
    busy_rows_per_s: float
    threads: int

    @property
    def rss_above_weights_mb(self) -> float:
        """Idle resident memory without the graph's own size."""
        return self.memory.rss_mb - self.graph_mb


def measure(plan: Plan, *, say: Callable[[str], None]) -> Footprint:
    """Measure a bundle.

    Raises:
        BundleError: the bundle is damaged.
        DataError: no row of the data file can be used.
    """
    bundle = open_bundle(plan.bundle)
    lines = _lines(plan.data)
    starts_s = []
    for number in range(plan.starts - 1):
        say(f"sf-bench: start {number + 1} of {plan.starts}")
        with _device(plan, bundle, lines) as device:
            starts_s.append(device.start_s)
    say(
        f"sf-bench: start {plan.starts} of {plan.starts}, then {plan.idle_s:.0f} s of rest and {plan.busy_s:.0f} s of work"
    )
    with _device(plan, bundle, lines) as device:
        starts_s.append(device.start_s)
        time.sleep(_SETTLE_S)
        idle = device.cpu_percent(plan.idle_s, lambda: time.sleep(plan.idle_s))
        memory, threads = device.memory(), device.threads()
        before = device.stored()
        busy = device.cpu_percent(plan.busy_s, lambda: device.append(lines, plan.busy_s, plan.rows_per_s))
        rows = device.stored() - before
        peak = device.peak_mb()
    graph = next(file for file in bundle.manifest.files if file.name == bundle.manifest.graph_file)
    return Footprint(
        packages=package_sizes(plan.python),
        graph_mb=graph.nbytes / 1e6,
        start_s=statistics.median(starts_s),
        starts_s=tuple(starts_s),
        memory=memory,
        peak_rss_mb=peak,
        idle_cpu_percent=idle,
        busy_cpu_percent=busy,
        busy_rows_per_s=rows / plan.busy_s,
        threads=threads,
    )


def package_sizes(python: Path) -> dict[str, float]:
    """MB of every package in an environment, without its installers.

    Raises:
        UsageError: it cannot be started.
    """
    try:
        done = subprocess.run([python, "-c", _SIZES], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        raise UsageError(
            f"{python} cannot be started: {problem}", cure="give the Python of a device's environment"
        ) from None
    sizes: dict[str, int] = json.loads(done.stdout)
    return {name: sizes[name] / 1e6 for name in sorted(sizes) if name not in ("pip", "setuptools")}


def parse_memory(rollup: str) -> Memory:
    """From `/proc/PID/smaps_rollup`."""
    fields = dict(line.split(":", 1) for line in rollup.splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    return Memory(rss_mb=kib["Rss"] * 1.024e-3, anonymous_mb=kib["Anonymous"] * 1.024e-3)


def parse_cpu_s(stat: str, *, ticks_per_s: int) -> float:
    """User and system time of a process from `/proc/PID/stat`; its name may hold blanks and brackets."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_s


class _Device:
    """A running `sf-edge run --watch` that has delivered its first row."""

    def __init__(self, process: subprocess.Popen[bytes], data: Path, run: RunFolder, start_s: float) -> None:
        self._proc = Path(f"/proc/{process.pid}")
        self._data, self._run = data, run
        self.start_s = start_s

    def cpu_percent(self, seconds: float, work: Callable[[], None]) -> float:
        """Processor time that it takes while `work` goes on for `seconds`, in percent of one core."""
        began_s = self._cpu_s()
        work()
        return (self._cpu_s() - began_s) / seconds * 100

    def append(self, lines: Sequence[str], seconds: float, per_s: float) -> None:
        """Write rows to its data file, evenly in time."""
        began_s = time.monotonic()
        for number, line in zip(range(round(seconds * per_s)), itertools.cycle(lines), strict=False):
            time.sleep(max(0.0, began_s + number / per_s - time.monotonic()))
            with self._data.open("a", encoding="utf-8") as stream:
                stream.write(line)
        time.sleep(max(0.0, began_s + seconds - time.monotonic()))

    def memory(self) -> Memory:
        """Now."""
        return parse_memory((self._proc / "smaps_rollup").read_text(encoding="ascii"))

    def threads(self) -> int:
        """Now."""
        return len(list((self._proc / "task").iterdir()))

    def peak_mb(self) -> float:
        """The most resident memory it ever had."""
        status = dict(line.split(":", 1) for line in (self._proc / "status").read_text(encoding="utf-8").splitlines())
        return int(status["VmHWM"].split()[0]) * 1.024e-3

    def stored(self) -> int:
        """Samples that the server has."""
        return _stored(self._run)

    def _cpu_s(self) -> float:
        stat = (self._proc / "stat").read_text(encoding="utf-8")
        return parse_cpu_s(stat, ticks_per_s=os.sysconf("SC_CLK_TCK"))


@contextmanager
def _device(plan: Plan, bundle: Bundle, lines: Sequence[str]) -> Iterator[_Device]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data, run = work / "data.jsonl", RunFolder(work / "server" / "run")
        data.write_text(lines[0], encoding="utf-8")
        with running_ingest(bundle, run) as address, (work / "edge.log").open("wb") as log:
            command = [
                *(str(plan.python), "-c", _EDGE, "run", "--watch", "--bundle", str(bundle.folder), "--server", address),
                *("--data", str(data), "--outbox", str(work / "outbox"), *plan.options),
            ]
            began_s = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=log, env=_device_environment())
            try:
                _wait_for_row(process, run, work / "edge.log")
                yield _Device(process, data, run, time.monotonic() - began_s)
            finally:
                process.terminate()
                process.wait()


def _device_environment() -> dict[str, str]:
    """This environment without what developers set against thread pools: a device has none of it."""
    return {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }


def _wait_for_row(process: subprocess.Popen[bytes], run: RunFolder, log: Path) -> None:
    end_s = time.monotonic() + _PATIENCE_S
    while _stored(run) == 0:
        if process.poll() is not None or time.monotonic() > end_s:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise DataError(
                f"sf-edge delivered nothing: {said[-1:]}", cure="make sf-edge run work with this data first"
            )
        time.sleep(_POLL_S)


def _stored(run: RunFolder) -> int:
    if not run.store_path.exists():
        return 0
    with Store.open_read_only(run.store_path) as store:
        return len(store.sample_infos(role=Role.TRAIN))


def _lines(data: Path) -> list[str]:
    rows = [json.dumps(row.record) + "\n" for row in read_records(data) if isinstance(row, Row)]
    if not rows:
        raise DataError(f"{data} holds no rows", cure="give a file with rows in the form that the bundle needs")
    return rows
