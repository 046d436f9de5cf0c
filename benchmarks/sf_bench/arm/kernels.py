"""Instructions per multiply-add of ONNX Runtime's matrix products on EMULATED ARM: what a scheme costs there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.arm.measure import ArmResult, Plan, count_instructions
from sf_bench.arm.profiles import Profile
from sf_bench.arm.report import LABEL
from sf_bench.arm.toolkit import Toolkit
from sf_bench.kernel_graphs import KERNELS, build_product
from sf_bench.kernels import WHOLE, Shape

_REPEATS: Final = 2


class KernelCost(msgspec.Struct, frozen=True):
    """One kernel on one shape and one EMULATED processor.

    Attributes:
        kernel, rows, shape, profile: what was counted; shape `all` is the products of a layer together.
        per_mac: instructions per multiply-add, the call of ONNX Runtime included.
        ratio: how many times fewer than fp32 MatMul of the same shape.
    """

    kernel: str
    rows: int
    shape: str
    profile: str
    per_mac: float
    ratio: float


def count_kernels(
    shapes: Sequence[Shape], profiles: Sequence[Profile], toolkit: Toolkit, *, rows: int, say: Callable[[str], None]
) -> list[KernelCost]:
    """Costs of all kernels.

    Raises:
        EmulationFailed, MismatchError: a process did not end well, or left no counts.
    """
    with tempfile.TemporaryDirectory() as work:
        files = _write_products(Path(work), shapes, rows)
        plan = Plan(targets=tuple(files), profiles=tuple(profiles), tokens=1, repeats=_REPEATS)
        results = count_instructions(plan, toolkit, ids={}, say=say)
    return kernel_costs(results, shapes, rows=rows)


def _write_products(work: Path, shapes: Sequence[Shape], rows: int) -> list[Path]:
    """A file for every kernel and shape, in that order."""
    files = []
    for number, kernel in enumerate(KERNELS):
        for shape in shapes:
            files.append(work / f"{number}-{shape.name}.onnx")
            files[-1].write_bytes(build_product(kernel, rows=rows, inner=shape.inner, outer=shape.outer).graph)
    return files


def kernel_costs(results: Sequence[ArmResult], shapes: Sequence[Shape], *, rows: int) -> list[KernelCost]:
    """Costs from counts, which come in the order of kernels, shapes and profiles; the first kernel is the baseline."""
    profiles = list(dict.fromkeys(result.profile for result in results))
    totals = iter(result.instructions.total for result in results)
    counted = {
        (kernel.name, shape.name, profile): next(totals)
        for kernel in KERNELS
        for shape in shapes
        for profile in profiles
    }
    macs = {shape.name: rows * shape.inner * shape.outer for shape in shapes}
    for kernel in KERNELS:
        for profile in profiles:
            counted[kernel.name, WHOLE, profile] = sum(
                shape.count * counted[kernel.name, shape.name, profile] for shape in shapes
            )
    macs[WHOLE] = sum(shape.count * macs[shape.name] for shape in shapes)
    fp32 = KERNELS[0].name
    return [
        KernelCost(
            kernel, rows, shape, profile, per_mac=total / macs[shape], ratio=counted[fp32, shape, profile] / total
        )
        for (kernel, shape, profile), total in counted.items()
    ]


def cost_table(costs: Sequence[KernelCost]) -> str:
    """For reading: a block per profile; each cell is instructions per multiply-add and the ratio to fp32."""
    shapes = list(dict.fromkeys(cost.shape for cost in costs))
    cells = {(cost.kernel, cost.profile, cost.shape): cost for cost in costs}
    lines = [LABEL]
    for profile in dict.fromkeys(cost.profile for cost in costs):
        lines += ["", f"{f'EMULATED {profile}':42}" + "".join(f"{name:>18}" for name in shapes)]
        for kernel in dict.fromkeys(cost.kernel for cost in costs):
            row = (cells[kernel, profile, shape] for shape in shapes)
            lines.append(f"{kernel:42}" + "".join(f"{cost.per_mac:10.4f} ({cost.ratio:4.2f}x)" for cost in row))
    return "\n".join(lines)
