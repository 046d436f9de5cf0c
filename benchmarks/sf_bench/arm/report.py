"""What `sf-bench arm` prints; every form says EMULATED."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from sf_bench.arm.counts import CLASSES
from sf_bench.arm.measure import ArmResult

LABEL: Final = (
    "EMULATED ARM (QEMU user mode): counted instructions of one thread, not time, energy or memory of a board"
)


def as_json(results: Sequence[ArmResult], *, baseline: str | None) -> dict[str, object]:
    """For machines."""
    ratios = _ratios(results, baseline)
    rows = [
        msgspec.to_builtins(result)
        | {"emulated": True, "fewer_than_baseline": ratios.get((result.target, result.profile))}
        for result in results
    ]
    return {"emulated": True, "label": LABEL, "baseline": baseline, "results": rows}


def as_table(results: Sequence[ArmResult], *, baseline: str | None) -> str:
    """For reading: a row per target and profile, million instructions per token."""
    width = max(len(result.target) for result in results)
    ratios = _ratios(results, baseline)
    head = f"{'target':{width}}  profile  M insns/token  spread" + "".join(f"{name:>14}" for name in CLASSES)
    lines = [LABEL, f"{head}  vs baseline  self-test"]
    for result in results:
        counts = result.instructions
        classes = "".join(f"{getattr(counts.median, name) / 1e6:14.3f}" for name in CLASSES)
        ratio = ratios.get((result.target, result.profile))
        lines.append(
            f"{result.target:{width}}  {result.profile:7}  {counts.total / 1e6:13.3f}  {counts.spread:6.2%}{classes}"
            f"  {'' if ratio is None else f'{ratio:.2f}x':>11}  {_self_test_words(result)}"
        )
    ids = {result.target: result.self_test.bundle_id for result in results if result.self_test is not None}
    lines += [f"{target} is bundle {bundle_id}" for target, bundle_id in ids.items()]
    if baseline is not None:
        lines.append(f"vs baseline: how many times fewer instructions than {baseline} on the same profile")
    return "\n".join(lines)


def _ratios(results: Sequence[ArmResult], baseline: str | None) -> Mapping[tuple[str, str], float]:
    """The baseline's instructions over each target's, by target and profile."""
    basis = {result.profile: result.instructions.total for result in results if result.target == baseline}
    return {
        (result.target, result.profile): basis[result.profile] / result.instructions.total
        for result in results
        if result.profile in basis and result.instructions.total
    }


def _self_test_words(result: ArmResult) -> str:
    match result.self_test:
        case None:
            return "none (no bundle)"
        case test if test.passed:
            return f"passed: error {test.error:.2%} (limit {test.limit:.2%})"
        case test:
            return f"FAILED: {test.problem}"
