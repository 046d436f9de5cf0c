"""How fast ONNX Runtime's matrix products are on this processor, taking turns: what a quantization scheme can reach at all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from sf_bench.kernel_graphs import KERNELS, Kernel, Product, build_product
from sf_contract.front_end import open_session

ROUNDS: Final = 7
_SLICE_S: Final = 0.02
WHOLE: Final = "all"


class Shape(msgspec.Struct, frozen=True):
    """Weights `[inner, outer]`, and how many of them a layer has."""

    inner: int
    outer: int
    count: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.inner}x{self.outer}"


class KernelSpeed(msgspec.Struct, frozen=True):
    """One kernel on one shape.

    Attributes:
        kernel, rows, shape: what was measured; shape `all` is the layer's products one after the other.
        time_us: median over the rounds.
        gmac_per_s: thousand million multiply-adds per second.
        ratio: speed against fp32 MatMul of the same rows and shape.
    """

    kernel: str
    rows: int
    shape: str
    time_us: float
    gmac_per_s: float
    ratio: float


def measure_kernels(
    shapes: Sequence[Shape], rows: Sequence[int], *, threads: int, say: Callable[[str], None], rounds: int = ROUNDS
) -> list[KernelSpeed]:
    """Speeds of all kernels; the kernels of one shape take turns, round by round.

    With one thread the clock is processor time, which leaves out what others do on the machine.
    """
    found: list[KernelSpeed] = []
    for count in rows:
        times = []
        for shape in shapes:
            say(f"sf-bench: {count} rows, weights {shape.name}")
            times.append(_times_s(shape, count, threads=threads, rounds=rounds))
        found += _speeds(shapes, times, count)
    return found


def _times_s(shape: Shape, rows: int, *, threads: int, rounds: int) -> dict[Kernel, float]:
    """Median seconds per run of each kernel."""
    products = [build_product(kernel, rows=rows, inner=shape.inner, outer=shape.outer) for kernel in KERNELS]
    runs = [_runner(product, threads) for product in products]
    samples: list[list[float]] = [[] for _ in runs]
    clock = time.process_time if threads == 1 else time.perf_counter
    for _ in range(rounds):
        for run, times in zip(runs, samples, strict=True):
            times.append(_mean_time_s(run, clock))
    return {kernel: statistics.median(times) for kernel, times in zip(KERNELS, samples, strict=True)}


def _runner(product: Product, threads: int) -> Callable[[], object]:
    session = open_session(product.graph, threads=threads)
    feeds = {"x": product.x}
    for _ in range(3):
        session.run(None, feeds)
    return lambda: session.run(None, feeds)


def _mean_time_s(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds per run over one slice of time."""
    began_s = clock()
    runs = 0
    while (taken_s := clock() - began_s) < _SLICE_S:
        run()
        runs += 1
    return taken_s / runs


def _speeds(shapes: Sequence[Shape], times: Sequence[dict[Kernel, float]], rows: int) -> list[KernelSpeed]:
    baseline = KERNELS[0]
    found: list[KernelSpeed] = []
    for kernel in KERNELS:
        for shape, of_shape in zip(shapes, times, strict=True):
            macs = rows * shape.inner * shape.outer
            ratio = of_shape[baseline] / of_shape[kernel]
            found.append(_speed(kernel, rows, shape.name, time_s=of_shape[kernel], macs=macs, ratio=ratio))
        macs = sum(rows * shape.inner * shape.outer * shape.count for shape in shapes)
        layer_s, fp32_s = (
            sum(of_shape[each] * shape.count for shape, of_shape in zip(shapes, times, strict=True))
            for each in (kernel, baseline)
        )
        found.append(_speed(kernel, rows, WHOLE, time_s=layer_s, macs=macs, ratio=fp32_s / layer_s))
    return found


def _speed(kernel: Kernel, rows: int, shape: str, *, time_s: float, macs: int, ratio: float) -> KernelSpeed:
    return KernelSpeed(kernel.name, rows, shape, time_us=time_s * 1e6, gmac_per_s=macs / time_s / 1e9, ratio=ratio)


def kernel_table(speeds: Sequence[KernelSpeed]) -> str:
    """For reading: a block per number of rows; each cell is GMAC/s and the ratio to fp32."""
    shapes = list(dict.fromkeys(speed.shape for speed in speeds))
    lines: list[str] = []
    for rows in dict.fromkeys(speed.rows for speed in speeds):
        lines += ["", f"{f'{rows} rows':42}" + "".join(f"{name:>18}" for name in shapes)]
        by_kernel: dict[str, list[KernelSpeed]] = {}
        for speed in speeds:
            if speed.rows == rows:
                by_kernel.setdefault(speed.kernel, []).append(speed)
        for kernel, cells in by_kernel.items():
            lines.append(f"{kernel:42}" + "".join(f"{c.gmac_per_s:10.1f} ({c.ratio:4.2f}x)" for c in cells))
    return "\n".join(lines)
