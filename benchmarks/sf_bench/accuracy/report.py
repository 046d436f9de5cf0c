"""What the accuracy comparison found: per arm, and per pair of arms. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from sf_bench.accuracy.results import FP32, Cell, RowError
from sf_bench.quality.phrases import PoolCounts
from sf_bench.quality.results import Evaluation
from sf_bench.quality.statistics import HOW, Hits, Interval, Paired, compare


class ArmSummary(msgspec.Struct, frozen=True):
    """One arm; accuracies are parts of one, seed by seed.

    `own` is judged with the arm's own rows, `whole` with fp32 rows (None where that was not asked for).
    """

    arm: str
    wire: str
    bytes_per_token: float
    row_error: RowError | None
    own: tuple[float, ...]
    whole: tuple[float, ...] | None
    cpu_s: float


class Pair(msgspec.Struct, frozen=True):
    """One arm against another: judged with its own rows, and with fp32 rows."""

    arm: str
    reference: str
    own: Paired
    whole: Paired | None


class Report(msgspec.Struct, frozen=True):
    """The whole comparison. `floor` is the accuracy of always giving the commonest answer."""

    samples: int
    seeds: tuple[int, ...]
    epochs: int
    tokens: tuple[int, ...]
    validation: int
    floor: float
    pool: PoolCounts
    arms: tuple[ArmSummary, ...]
    pairs: tuple[Pair, ...]
    method: str = HOW


def summarize_arm(cells: Sequence[Cell]) -> ArmSummary:
    """One arm from its cells, in the order of the seeds."""
    first = cells[0]
    return ArmSummary(
        arm=first.arm,
        wire=first.wire,
        bytes_per_token=first.bytes_per_token,
        row_error=first.row_error,
        own=tuple(cell.own.accuracy for cell in cells),
        whole=_accuracies_of(cell.whole for cell in cells),
        cpu_s=sum(cell.cpu_s for cell in cells),
    )


def pairs_of(cells: Mapping[str, Sequence[Cell]]) -> tuple[Pair, ...]:
    """Every bundle against the fp32 rows, and every further bundle against the first one."""
    bundles = [name for name in cells if name != FP32]
    wanted = [(name, FP32) for name in bundles if FP32 in cells]
    wanted += [(name, bundles[0]) for name in bundles[1:]]
    return tuple(
        Pair(
            arm=arm,
            reference=reference,
            own=compare(*(_hits(cell.own for cell in cells[name]) for name in (arm, reference))),
            whole=_compared_whole(cells[arm], cells[reference]),
        )
        for arm, reference in wanted
    )


def as_text(report: Report) -> str:
    """For reading."""
    return "\n".join([*_heading(report), "", *_arm_lines(report), *_pair_lines(report), "", report.method])


def _compared_whole(arm: Sequence[Cell], reference: Sequence[Cell]) -> Paired | None:
    wholes = [[cell.whole for cell in cells if cell.whole is not None] for cells in (arm, reference)]
    if len(wholes[0]) < len(arm) or len(wholes[1]) < len(reference):
        return None
    return compare(_hits(wholes[0]), _hits(wholes[1]))


def _hits(runs: Iterable[Evaluation]) -> Hits:
    return np.array([run.hits for run in runs])


def _accuracies_of(runs: Iterable[Evaluation | None]) -> tuple[float, ...] | None:
    found = list(runs)
    judged = [run.accuracy for run in found if run is not None]
    return tuple(judged) if len(judged) == len(found) else None


def _heading(report: Report) -> list[str]:
    pool = report.pool
    return [
        f"{report.samples} training phrases ({min(report.tokens)}-{max(report.tokens)} tokens in all, {report.epochs} "
        f"epochs), seeds {', '.join(map(str, report.seeds))}; {report.validation} validation samples "
        f"(always the commonest answer: {report.floor:.1%})",
        f"training phrases drawn from {pool.left} of {pool.rows} rows; left out: {pool.repeated} repeated or contradictory, "
        f"{pool.in_validation} that occur in a validation sample, {pool.too_long} too long, {pool.unusable} unusable",
    ]


def _arm_lines(report: Report) -> list[str]:
    width = max(len(arm.arm) for arm in report.arms)
    lines = [f"{'rows':{width}}  wire  bytes/token  row error mean / p99  judged with  accuracy by seed, mean"]
    for arm in report.arms:
        error = "-" if arm.row_error is None else f"{arm.row_error.mean:.2%} / {arm.row_error.p99:.2%}"
        start = f"{arm.arm:{width}}  {arm.wire:4}  {arm.bytes_per_token:11.1f}  {error:>20}"
        lines.append(f"{start}  own rows     {_accuracies(arm.own)}")
        if arm.arm != FP32 and arm.whole is not None:
            lines.append(f"{'':{len(start)}}  fp32 rows    {_accuracies(arm.whole)}")
    return lines


def _pair_lines(report: Report) -> list[str]:
    if not report.pairs:
        return []
    lines = ["", "differences in points    judged with  by seed, mean, 95 % over samples, 95 % over seeds, right alone"]
    for pair in report.pairs:
        for judged, paired in (("own rows", pair.own), ("fp32 rows", pair.whole)):
            if paired is None:
                continue
            lines.append(
                f"{pair.arm + ' - ' + pair.reference:23}  {judged:11}  "
                f"{', '.join(f'{value:+.2f}' for value in paired.by_seed)}, mean {paired.mean:+.2f}, "
                f"samples {_interval(paired.over_samples)}, seeds {_interval(paired.over_seeds)}, "
                f"{paired.only_arm} to {paired.only_reference}"
            )
    return lines


def _accuracies(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2%}" for value in values) + f", mean {sum(values) / len(values):.2%}"


def _interval(interval: Interval | None) -> str:
    return "-" if interval is None else f"[{interval.low:+.2f}, {interval.high:+.2f}] (n {interval.n})"
