"""What the study of one class per device found. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import msgspec
import numpy as np

from sf_bench.quality.statistics import HOW, Paired, compare
from sf_bench.studies.one_class import APART, CENTRAL, POOLED, OneClassCell
from sf_bench.studies.report import DIFFERENCES, Ground, difference_row, ground_lines, mean_percent, percents, table

TARGET_POINTS = 1.0

_WORDS = {
    POOLED: "pooled by the server, behind the front end",
    CENTRAL: "centralised LoRA, whole model",
    APART: "devices kept apart (--no-pool)",
}


class WayLine(msgspec.Struct, frozen=True):
    """One way, by seed."""

    way: str
    own: tuple[float, ...]
    alone: tuple[float, ...]
    steps: tuple[int, ...]
    tokens: tuple[int, ...]


class OneClassReport(msgspec.Struct, frozen=True):
    """The whole comparison; differences are by name, as in `pooled - central`.

    `is_within_target`: pooled is no more than a point below centralised in the mean over the seeds.
    """

    ground: Ground
    devices: int
    ways: tuple[WayLine, ...]
    differences: dict[str, Paired]
    is_within_target: bool | None
    target_points: float = TARGET_POINTS
    method: str = HOW


def one_class_report(ground: Ground, cells: dict[str, list[OneClassCell]], *, devices: int) -> OneClassReport:
    """From the cells of some ways."""
    hits = {way: np.array([cell.own.hits for cell in found]) for way, found in cells.items()}
    differences = {
        f"{one} - {other}": compare(hits[one], hits[other])
        for one, other in combinations((POOLED, CENTRAL, APART), 2)
        if one in hits and other in hits
    }
    decisive = differences.get(f"{POOLED} - {CENTRAL}")
    return OneClassReport(
        ground=ground,
        devices=devices,
        ways=tuple(_line(found) for found in cells.values()),
        differences=differences,
        is_within_target=None if decisive is None else decisive.mean >= -TARGET_POINTS,
    )


def one_class_markdown(report: OneClassReport) -> str:
    """For reading."""
    rows = [
        [
            _WORDS[line.way],
            percents(line.own),
            mean_percent(line.own),
            percents(line.alone),
            ", ".join(map(str, line.steps)),
        ]
        for line in report.ways
    ]
    floor = report.ground.floor or 0.0
    rows.append(["always the commonest answer", "", mean_percent([floor]), "", ""])
    heading = ("way", "accuracy by seed", "mean", "adapter alone, fp32, by seed", "steps")
    lines = [f"# One class per device, {report.devices} devices", "", *ground_lines(report.ground), ""]
    lines += table(heading, rows)
    if report.differences:
        lines += ["", *table(DIFFERENCES, [difference_row(*pair) for pair in report.differences.items()])]
    if report.is_within_target is not None:
        word = "is" if report.is_within_target else "is not"
        lines += ["", f"Aim: pooled no more than {report.target_points:g} point below centralised. It {word} met."]
    return "\n".join([*lines, "", report.method, ""])


def _line(cells: Sequence[OneClassCell]) -> WayLine:
    return WayLine(
        way=cells[0].way,
        own=tuple(cell.own.accuracy for cell in cells),
        alone=tuple(cell.alone.accuracy for cell in cells),
        steps=tuple(cell.effort.steps for cell in cells),
        tokens=tuple(cell.effort.tokens for cell in cells),
    )
