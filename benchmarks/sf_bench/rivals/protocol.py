"""What the measuring process and its workers say to each other: one JSON object per line, over the worker's pipes.

Workers may run in another Python environment, so this module and `worker` need the standard library and NumPy only.

    parent -> worker   the job, then requests: "turn", "rows", "memory"; the end of the stream ends the worker
    worker -> parent   one reply per line: what was asked for, or `{"failed": reason}`, which is the last one
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatRows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """What a worker does.

    Attributes:
        runtime: module name after `sf_bench.rivals.runtime_`.
        threads: processor threads.
        windows: token sequences of equal length.
        options: what the runtime needs besides: paths, precisions.
    """

    runtime: str
    threads: int
    windows: tuple[tuple[int, ...], ...]
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Times:
    """How long something took: on the clock, and of the processor.

    On a machine that others use too, the clock also counts their turns; processor time does not.
    """

    wall_s: float
    cpu_s: float

    def __sub__(self, other: Times) -> Times:
        return Times(wall_s=self.wall_s - other.wall_s, cpu_s=self.cpu_s - other.cpu_s)


def timed(work: Callable[[], object]) -> Times:
    """Do some work; processor time is that of all threads of this process."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    return Times(cpu_s=time.process_time() - cpu_s, wall_s=time.perf_counter() - wall_s)


class Runtime(Protocol):
    """A front end that is ready to run."""

    @property
    def version(self) -> str:
        """The library, its version, and what else decides its speed."""

    def run(self, token_ids: tuple[int, ...]) -> Times:
        """What the layers below the cut take for one sequence."""

    def rows(self, token_ids: tuple[int, ...]) -> FloatRows:
        """Hidden states at the cut `[tokens, hidden]`; where only normalised ones can be had, those."""


def encode_job(job: Job) -> str:
    """One line."""
    return json.dumps(asdict(job))


def decode_job(line: str) -> Job:
    """The inverse of `encode_job`."""
    raw = json.loads(line)
    windows = tuple(tuple(window) for window in raw.pop("windows"))
    return Job(windows=windows, **raw)


def replies(runtime: Runtime, job: Job, requests: Iterator[str]) -> Iterator[dict[str, object]]:
    """The worker's side of the conversation, without pipes."""
    for window in job.windows[:2]:
        runtime.run(window)
    yield {"version": runtime.version}
    for request in requests:
        match request.strip():
            case "turn":
                times = [runtime.run(window) for window in job.windows]
                yield {"wall_s": [each.wall_s for each in times], "cpu_s": [each.cpu_s for each in times]}
            case "rows":
                rows = np.concatenate([runtime.rows(window) for window in job.windows])
                rows.astype("<f4").tofile(job.options["rows_file"])
                yield {"shape": list(rows.shape)}
            case "memory":
                yield {"memory_mb": resident_mb()}
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")


def resident_mb() -> float | None:
    """Memory of this process that is in RAM now, interpreter and libraries included; None where no Linux says it."""
    try:
        with open("/proc/self/status", encoding="ascii") as stream:  # noqa: PTH123  # pathlib would be one import more
            line = next(line for line in stream if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) / 1024
