"""Speed and memory of a bundle's front end on this machine."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from sf_bench.machine import describe_machine
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.command import usable_cores
from sf_contract.errors import UsageError
from sf_contract.front_end import RUNTIME_VERSION, FrontEnd, open_front_end, run_self_test

WARM_UP_RUNS = 3


class Plan(msgspec.Struct, frozen=True):
    """What to measure: every combination of tokens, batch size and threads, `repeats` timed runs each."""

    tokens: tuple[int, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    repeats: int


class ShapeResult(msgspec.Struct, frozen=True):
    """One combination. Milliseconds are wall-clock per run, CPU seconds are of the whole process per run."""

    tokens: int
    batch: int
    threads: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    tokens_per_s: float
    cpu_ms: float


class Report(msgspec.Struct, frozen=True):
    """Measurement of one bundle on one machine; `peak_rss_mb` is of this whole process, Python included."""

    bundle_id: str
    bundle_mb: float
    machine: str
    cores: int
    onnxruntime: str
    load_s: float
    self_test_error: float
    peak_rss_mb: float
    repeats: int
    shapes: tuple[ShapeResult, ...]


def measure(folder: Path, plan: Plan, *, say: Callable[[str], None]) -> Report:
    """Measure a bundle.

    Raises:
        BundleError, SelfTestFailed: the bundle is damaged, or this machine computes it differently.
        UsageError: a shape has more tokens than the bundle allows.
    """
    bundle = open_bundle(folder)
    too_long = [tokens for tokens in plan.tokens if tokens > bundle.manifest.geometry.max_tokens]
    if too_long:
        raise UsageError(
            f"--tokens {too_long[0]} is more than the {bundle.manifest.geometry.max_tokens} the bundle allows",
            cure="give fewer tokens, or export with a larger --max-tokens",
        )
    began_s = time.perf_counter()
    front_end = open_front_end(bundle)
    load_s = time.perf_counter() - began_s
    error = run_self_test(bundle, front_end)
    shapes = tuple(_measure_shapes(bundle, plan, say))
    return Report(
        bundle_id=bundle.bundle_id,
        bundle_mb=sum(file.nbytes for file in bundle.manifest.files) / 1e6,
        machine=describe_machine().processor,
        cores=usable_cores(),
        onnxruntime=RUNTIME_VERSION,
        load_s=load_s,
        self_test_error=error,
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        repeats=plan.repeats,
        shapes=shapes,
    )


def as_table(report: Report) -> str:
    """For reading."""
    lines = [
        f"bundle {report.bundle_id[:16]}, {report.bundle_mb:.1f} MB, self-test error {report.self_test_error:.2%}",
        f"{report.machine}, {report.cores} cores, ONNX Runtime {report.onnxruntime}",
        f"load {report.load_s:.2f} s, peak memory of this process {report.peak_rss_mb:.0f} MB, {report.repeats} runs each",
        "",
        "batch  tokens  threads   p50 ms   p95 ms   p99 ms  tokens/s   CPU ms",
    ]
    lines += [
        f"{s.batch:5d} {s.tokens:7d} {s.threads:8d} {s.p50_ms:8.2f} {s.p95_ms:8.2f} {s.p99_ms:8.2f} "
        f"{s.tokens_per_s:9.0f} {s.cpu_ms:8.2f}"
        for s in report.shapes
    ]
    return "\n".join(lines)


def _measure_shapes(bundle: Bundle, plan: Plan, say: Callable[[str], None]) -> Iterator[ShapeResult]:
    generator = np.random.default_rng(0)
    for threads in plan.threads:
        front_end = open_front_end(bundle, threads=threads)
        for batch in plan.batches:
            for tokens in plan.tokens:
                say(f"sf-bench: {batch} x {tokens} tokens, {threads} threads")
                ids = generator.integers(0, bundle.manifest.geometry.vocabulary, (batch, tokens)).tolist()
                yield _measure_shape(front_end, ids, threads=threads, repeats=plan.repeats)


def _measure_shape(front_end: FrontEnd, ids: Sequence[Sequence[int]], *, threads: int, repeats: int) -> ShapeResult:
    for _ in range(WARM_UP_RUNS):
        front_end.run(ids)
    times_s: list[float] = []
    cpu_began_s = time.process_time()
    for _ in range(repeats):
        began_s = time.perf_counter()
        front_end.run(ids)
        times_s.append(time.perf_counter() - began_s)
    cpu_s = time.process_time() - cpu_began_s
    p50, p95, p99 = (float(value) for value in np.percentile(times_s, [50, 95, 99]))
    return ShapeResult(
        tokens=len(ids[0]),
        batch=len(ids),
        threads=threads,
        p50_ms=p50 * 1e3,
        p95_ms=p95 * 1e3,
        p99_ms=p99 * 1e3,
        tokens_per_s=len(ids) * len(ids[0]) / p50,
        cpu_ms=cpu_s / repeats * 1e3,
    )
