"""What a measurement says about how to run a bundle here: pure decisions, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sf_contract.hashes import sha256
from sf_contract.manifest import Sha256
from sf_edge.bench.report import QUIET_SHARE, Advice, BatchFinding, CellResult

SCHEMA_VERSION: Final = 1

DOUBLING_MUST_GAIN: Final = 1.2
"""Speed that twice as many threads must at least bring.

The device belongs to somebody who uses it for other things. Twice the threads take up to twice the processor time and energy
per second; below this gain each token costs up to 1.67 times as much, to be ready a sixth earlier, which nobody waits for.
"""

NEARLY_AS_FAST: Final = 1.05
"""Below this ratio two quantizations count as equally fast, and the one with the smaller error wins: measurements vary so."""

NEW_WINNER_MUST_GAIN: Final = 1.1
"""By how much another quantization must beat the former choice. Another choice is another bundle for the server, and an
outbox that starts over, so it must not change with the noise of a measurement."""


BUSY_REASON: Final = "the machine was busy, and more threads would only have taken more of it from other programs"


class Tuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The best way to run one bundle on one machine; `machine` and `onnxruntime` are for people, the digest decides."""

    schema_version: Literal[1] = SCHEMA_VERSION
    bundle_id: Sha256
    machine_digest: Sha256
    machine: str
    onnxruntime: str
    threads: Annotated[int, Meta(ge=1, le=256)]
    tokens_per_s: Annotated[float, Meta(gt=0)]
    batch: BatchFinding | None = None


class Tried(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A quantization that took part in a contest: tokens per second with one thread, or why it cannot be used here."""

    bundle_id: Sha256
    tokens_per_s: Annotated[float, Meta(gt=0)] | None = None
    failure: str | None = None


class Contest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Quantizations of one front end, measured in turns on one machine, and the one that was chosen."""

    schema_version: Literal[1] = SCHEMA_VERSION
    machine_digest: Sha256
    tried: tuple[Tried, ...]
    chosen: Sha256


def advise(cells: Sequence[CellResult], *, processor_share: float) -> Advice:
    """Threads for one sample at a time, which is how `sf-edge run` computes, and what batches would bring with them.

    On a machine that others use at the same time (see `BenchReport.processor_share`) more threads look better than they are:
    the system shares its processors between threads, so two of them get twice as much, at the cost of the others.
    """
    speeds = speeds_by_threads(cells)
    is_quiet = processor_share >= QUIET_SHARE
    threads = threads_that_pay(speeds) if is_quiet else min(speeds)
    return Advice(
        threads=threads,
        tokens_per_s=speeds[threads],
        is_reliable=is_quiet,
        reason=_reason(speeds) if is_quiet else BUSY_REASON,
        batch=best_batch([cell for cell in cells if cell.threads == threads]),
    )


def speeds_by_threads(cells: Sequence[CellResult]) -> dict[int, float]:
    """Geometric mean of the tokens per second over the shapes of one sample (over all shapes where there are none of those)."""
    single = [cell for cell in cells if cell.shape.rows == 1] or list(cells)
    counts = sorted({cell.threads for cell in single})
    return {
        threads: math.exp(_mean([math.log(cell.tokens_per_s) for cell in single if cell.threads == threads]))
        for threads in counts
    }


def threads_that_pay(speeds: Mapping[int, float]) -> int:
    """The fastest number of threads, where each doubling over a smaller one must gain `DOUBLING_MUST_GAIN`."""
    chosen = min(speeds)
    for threads in sorted(speeds):
        if threads > chosen and speeds[threads] >= speeds[chosen] * must_gain(threads / chosen):
            chosen = threads
    return chosen


def must_gain(ratio: float) -> float:
    """Speed that `ratio` times as many threads must bring: 1.2 for 2, 1.44 for 4."""
    return float(DOUBLING_MUST_GAIN ** math.log2(ratio))


def best_batch(cells: Sequence[CellResult]) -> BatchFinding | None:
    """Of cells with equal threads: the shape of several samples that gains most over one sample of the same length."""
    single = {cell.shape.tokens: cell.tokens_per_s for cell in cells if cell.shape.rows == 1}
    found = [
        BatchFinding(cell.shape.rows, cell.shape.tokens, cell.tokens_per_s / single[cell.shape.tokens])
        for cell in cells
        if cell.shape.rows > 1 and cell.shape.tokens in single
    ]
    return max(found, key=lambda finding: finding.gain, default=None)


def choose_quantization(
    speeds: Mapping[str, float], errors: Mapping[str, float], *, former: str | None = None
) -> tuple[str, str]:
    """The bundle id to use and why.

    Args:
        speeds: tokens per second of each bundle that passed its self-test.
        errors: mean relative error of each, as its exporter measured it.
        former: the bundle that was chosen before on this machine.
    """
    fastest = max(speeds, key=lambda bundle_id: speeds[bundle_id])
    near = [bundle_id for bundle_id in speeds if speeds[bundle_id] * NEARLY_AS_FAST >= speeds[fastest]]
    best = min(near, key=lambda bundle_id: (errors[bundle_id], -speeds[bundle_id]))
    if (
        former is not None
        and former in speeds
        and former != best
        and speeds[best] < speeds[former] * NEW_WINNER_MUST_GAIN
    ):
        return former, "chosen before, and no other is much faster"
    if best != fastest:
        return best, f"nearly as fast as the fastest ({speeds[fastest] / speeds[best]:.2f} times), with a smaller error"
    return best, "the fastest"


def contest_key(bundle_ids: Sequence[str]) -> str:
    """The name of a contest: the same bundles, the same name."""
    return sha256("\n".join(sorted(bundle_ids)).encode()).hexdigest()


def _reason(speeds: Mapping[int, float]) -> str:
    if len(speeds) == 1:
        return "the only number measured"
    told = ", ".join(f"{n}: {speeds[n]:.0f}" for n in sorted(speeds))
    return f"tokens/s by threads: {told}; twice the threads must bring {DOUBLING_MUST_GAIN} times the speed"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
