"""What `sf-edge bench` reports: one document for machines, one table for a person. Other programs read the document.

`schema_version` rises when a field changes its meaning or goes; new fields come without a new version.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sf_edge.bench.machine import Machine

SCHEMA_VERSION: Final = 1
_MB: Final = 1e6

QUIET_SHARE: Final = 0.9
"""Of the time a thread wants to compute, how much it gets on a machine that nobody else uses."""


class Shape(msgspec.Struct, frozen=True, order=True):
    """One forward pass: `rows` samples of `tokens` tokens each."""

    rows: Annotated[int, Meta(ge=1, le=256)]
    tokens: Annotated[int, Meta(ge=1)]

    def __str__(self) -> str:
        return f"{self.rows}x{self.tokens}"


class CellResult(msgspec.Struct, frozen=True):
    """One shape with one number of threads.

    Attributes:
        runs: forward passes that were timed.
        p50_ms, p95_ms, p99_ms: wall-clock milliseconds per forward pass.
        tokens_per_s: tokens of a pass over its median time.
        cpu_ms: processor milliseconds of this process per forward pass, all threads together.
        joules_per_1000_tokens: of everything the energy source measures; None where it could not be read.
    """

    shape: Shape
    threads: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    tokens_per_s: float
    cpu_ms: float
    joules_per_1000_tokens: float | None = None


class Load(msgspec.Struct, frozen=True):
    """Median seconds to read the graph's file, check its hash and open it with this many threads."""

    threads: int
    openings: int
    p50_s: float


class Start(msgspec.Struct, frozen=True):
    """A process of its own that does what `sf-edge run` does before its first row, with one thread: phases and memory.

    Attributes:
        imports_s: from the process's start to the end of its imports.
        check_s: hashes of all files of the bundle.
        tokenizer_s: opening the tokenizer.
        load_s: opening the graph.
        self_test_s: the bundle's test vectors, and giving memory that loading needed back to the system.
        first_row_s: the first forward pass of the smallest shape.
        total_s: all of the above.
        weights_bytes: size of the graph's file.
        rss_before_graph_bytes: resident memory with all libraries and the tokenizer, before the graph.
        rss_idle_bytes: resident memory after the first row.
        rss_peak_bytes: the most it ever was, every shape computed once.
        rss_idle_above_weights_bytes: `rss_idle_bytes` - `weights_bytes`.
    """

    imports_s: float
    check_s: float
    tokenizer_s: float
    load_s: float
    self_test_s: float
    first_row_s: float
    total_s: float
    weights_bytes: int
    rss_before_graph_bytes: int | None
    rss_idle_bytes: int | None
    rss_peak_bytes: int | None

    @property
    def rss_idle_above_weights_bytes(self) -> int | None:
        """What the process holds besides the weights."""
        return None if self.rss_idle_bytes is None else self.rss_idle_bytes - self.weights_bytes


class Energy(msgspec.Struct, frozen=True):
    """Joules of all timed passes together and what measured them; `why_not` says why there is no number."""

    joules: float | None = None
    watts: float | None = None
    source: str | None = None
    why_not: str | None = None


class Throttling(msgspec.Struct, frozen=True):
    """Whether the machine slowed itself down during the run; `seen` None means that nothing could be read."""

    seen: bool | None
    evidence: tuple[str, ...] = ()
    median_mhz: float | None = None
    limit_mhz: float | None = None
    why_unknown: str | None = None


class BatchFinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens per second with `rows` samples of `tokens` tokens per pass over those with one sample of that length."""

    rows: int
    tokens: int
    gain: float


class Advice(msgspec.Struct, frozen=True):
    """What the numbers say about how to run this bundle on this machine.

    Attributes:
        threads: the number that pays.
        tokens_per_s: with it, the mean over the shapes of one sample.
        is_reliable: False when other programs used the machine; then the smallest number is advised, and nothing is stored.
        reason: why, for a person.
        batch: the best shape of several samples; None where none was measured.
        stored_in: the tuning file that `sf-edge run` reads; None without `--tune`.
    """

    threads: int
    tokens_per_s: float
    is_reliable: bool
    reason: str
    batch: BatchFinding | None = None
    stored_in: str | None = None


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle on one machine.

    Attributes:
        bundle_bytes: all files of the bundle.
        self_test_error: mean relative error of this machine's rows on the bundle's test vectors.
        rounds: turns that every shape with every number of threads had, in an order that changes.
        timed_wall_s, timed_cpu_s: of all timed passes together, this process alone.
        processor_share: of the time of the passes with the fewest threads, the part in which those threads had a processor;
            well below 1 means that other programs used the machine, and that wall-clock times are worse than it can do.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    software: str
    python: str
    onnxruntime: str
    machine: Machine
    machine_digest: str
    bundle_id: str
    bundle_bytes: int
    model: str
    split_layer: int
    self_test_error: float
    rounds: int
    timed_wall_s: float
    timed_cpu_s: float
    processor_share: float
    start: Start
    loads: tuple[Load, ...]
    cells: tuple[CellResult, ...]
    energy: Energy
    throttling: Throttling
    advice: Advice


def report_text(report: BenchReport) -> str:
    """The report for a person."""
    return "\n".join(
        (
            *_heading(report),
            "",
            *_start_lines(report.start),
            "",
            *_table(report.cells),
            "",
            *_after_lines(report),
        )
    )


def counted(number: int, thing: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _heading(report: BenchReport) -> list[str]:
    machine = report.machine
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.1f} GiB memory"
    return [
        f"bundle {report.bundle_id[:12]}: {report.model}, layers 1 to {report.split_layer}, "
        f"{report.bundle_bytes / _MB:.1f} MB, self-test error {report.self_test_error:.2%}",
        f"{machine.line}{memory}",
        f"kernel {machine.kernel}, governor {machine.governor or 'unknown'}, Python {report.python}, "
        f"ONNX Runtime {report.onnxruntime}",
    ]


def _start_lines(start: Start) -> list[str]:
    return [
        f"to the first row {start.total_s:.2f} s: imports {start.imports_s:.2f}, files checked {start.check_s:.2f}, "
        f"tokenizer {start.tokenizer_s:.2f}, graph {start.load_s:.2f}, self-test {start.self_test_s:.2f}, "
        f"row {start.first_row_s:.3f}",
        f"memory of such a process: {_mb(start.rss_idle_bytes)} after the first row, "
        f"{_mb(start.rss_idle_above_weights_bytes)} without the weights "
        f"({_mb(start.rss_before_graph_bytes)} before the graph); {_mb(start.rss_peak_bytes)} at most",
    ]


def _table(cells: tuple[CellResult, ...]) -> list[str]:
    rows = [
        f"{cell.shape!s:>7} {cell.threads:8d} {cell.runs:6d} {cell.p50_ms:8.2f} {cell.p95_ms:8.2f} {cell.p99_ms:8.2f} "
        f"{cell.tokens_per_s:9.0f} {cell.cpu_ms:8.2f} {_joules(cell.joules_per_1000_tokens):>15}"
        for cell in cells
    ]
    return ["  shape  threads   runs   p50 ms   p95 ms   p99 ms  tokens/s   CPU ms  J/1000 tokens ", *rows]


def _after_lines(report: BenchReport) -> list[str]:
    batch = report.advice.batch
    rows = [] if batch is None else [_batch_line(batch)]
    loads = ", ".join(f"{load.p50_s:.2f} s with {counted(load.threads, 'thread')}" for load in report.loads)
    stored = report.advice.stored_in
    return [
        f"{report.rounds} rounds, {report.timed_wall_s:.1f} s of timed passes, {report.timed_cpu_s:.1f} CPU seconds; "
        "a p99 of fewer than 100 runs is near the slowest run",
        *_busy_lines(report.processor_share),
        f"opening the graph again: {loads}",
        f"energy: {_energy_line(report.energy)}",
        f"throttling: {_throttling_line(report.throttling)}",
        f"threads: {report.advice.threads} ({report.advice.reason})",
        *rows,
        *([] if stored is None else [f"stored in {stored}; sf-edge run uses it when --threads is not given"]),
    ]


def _busy_lines(processor_share: float) -> list[str]:
    if processor_share >= QUIET_SHARE:
        return []
    return [
        f"busy machine: a pass had its processor only {processor_share:.0%} of the time, as other programs ran; measure again "
        "when it is quiet"
    ]


def _batch_line(batch: BatchFinding) -> str:
    verdict = "more" if batch.gain > 1 else "fewer"
    return (
        f"batches: {batch.rows} samples of {batch.tokens} tokens per pass give {batch.gain:.2f} times the tokens per second "
        f"of one ({verdict}); sf-edge run computes one at a time"
    )


def _energy_line(energy: Energy) -> str:
    if energy.joules is None:
        return f"not measured: {energy.why_not}"
    watts = "" if energy.watts is None else f", {energy.watts:.1f} W"
    return f"{energy.joules:.1f} J{watts} while timed, {energy.source}, with everything else that ran"


def _throttling_line(found: Throttling) -> str:
    if found.seen is None:
        return f"unknown: {found.why_unknown}"
    clock = "" if found.median_mhz is None or found.limit_mhz is None else _clock(found.median_mhz, found.limit_mhz)
    return ("; ".join(found.evidence) if found.seen else "none seen") + clock


def _clock(median_mhz: float, limit_mhz: float) -> str:
    return f" (median clock {median_mhz:.0f} of {limit_mhz:.0f} MHz)"


def _joules(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mb(nbytes: int | None) -> str:
    return "unknown" if nbytes is None else f"{nbytes / _MB:.0f} MB"
