"""What the study of mixed cuts found. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from sf_bench.quality.statistics import HOW, Numbers, Paired, compare, compare_scores
from sf_bench.studies.cuts import MIXED, SINGLE, CutsCell
from sf_bench.studies.report import DIFFERENCES, Ground, difference_row, ground_lines, mean_percent, percents, table

TARGET_POINTS = 1.0


class DeviceLine(msgspec.Struct, frozen=True):
    """One cut of one way: accuracy by seed, and the part of its answers that are those of the adapter alone, by seed."""

    way: str
    split_layer: int
    stated_error: float
    accuracy: tuple[float, ...]
    like_alone: tuple[float, ...]


class AloneLine(msgspec.Struct, frozen=True):
    """The adapter of one way in the untouched whole model, by seed."""

    way: str
    accuracy: tuple[float, ...]
    steps: tuple[int, ...]
    tokens: tuple[int, ...]


class CutsReport(msgspec.Struct, frozen=True):
    """The whole comparison; the difference of the devices is that of the mean over each way's devices.

    `is_within_target`: the mean accuracy of the mixed devices is no more than a point below that of the single cut.
    """

    ground: Ground
    devices: tuple[DeviceLine, ...]
    alone: tuple[AloneLine, ...]
    devices_difference: Paired | None
    alone_difference: Paired | None
    is_within_target: bool | None
    target_points: float = TARGET_POINTS
    method: str = HOW


def cuts_report(ground: Ground, cells: dict[str, list[CutsCell]]) -> CutsReport:
    """From the cells of one or both ways."""
    devices = alone = None
    if MIXED in cells and SINGLE in cells:
        mixed, single = cells[MIXED], cells[SINGLE]
        devices = compare_scores(_device_scores(mixed), _device_scores(single))
        alone = compare(*(np.array([cell.alone.hits for cell in found]) for found in (mixed, single)))
    return CutsReport(
        ground=ground,
        devices=tuple(line for found in cells.values() for line in _device_lines(found)),
        alone=tuple(_alone_line(found) for found in cells.values()),
        devices_difference=devices,
        alone_difference=alone,
        is_within_target=None if devices is None else devices.mean >= -TARGET_POINTS,
    )


def cuts_markdown(report: CutsReport) -> str:
    """For reading."""
    answers = [
        [
            line.way,
            f"cut {line.split_layer}, own front end",
            f"{line.stated_error:.2%}",
            percents(line.accuracy),
            mean_percent(line.accuracy),
            percents(line.like_alone),
        ]
        for line in report.devices
    ]
    answers += [
        [line.way, "adapter alone, fp32", "-", percents(line.accuracy), mean_percent(line.accuracy), "-"]
        for line in report.alone
    ]
    heading = ("way", "answers", "row error stated", "accuracy by seed", "mean", "same answers as the adapter alone")
    lines = ["# Mixed cuts", "", *ground_lines(report.ground), "", *table(heading, answers)]
    pairs = (("mixed - single, devices", report.devices_difference), ("mixed - single, alone", report.alone_difference))
    rows = [difference_row(name, paired) for name, paired in pairs if paired is not None]
    if rows:
        lines += ["", *table(DIFFERENCES, rows), "", _verdict(report)]
    return "\n".join([*lines, "", report.method, ""])


def _verdict(report: CutsReport) -> str:
    word = "is" if report.is_within_target else "is not"
    points = f"{report.target_points:g} point"
    return f"Aim: mixed no more than {points} below single in the mean over devices and seeds. It {word} met."


def _device_scores(cells: Sequence[CutsCell]) -> Numbers:
    """Part of the devices that are right, `[seeds, samples]`."""
    return np.array([np.mean([device.answers.hits for device in cell.devices], axis=0) for cell in cells])


def _device_lines(cells: Sequence[CutsCell]) -> list[DeviceLine]:
    return [
        DeviceLine(
            way=cells[0].way,
            split_layer=first.split_layer,
            stated_error=first.stated_error,
            accuracy=tuple(cell.devices[number].answers.accuracy for cell in cells),
            like_alone=tuple(cell.devices[number].like_alone for cell in cells),
        )
        for number, first in enumerate(cells[0].devices)
    ]


def _alone_line(cells: Sequence[CutsCell]) -> AloneLine:
    return AloneLine(
        way=cells[0].way,
        accuracy=tuple(cell.alone.accuracy for cell in cells),
        steps=tuple(cell.effort.steps for cell in cells),
        tokens=tuple(cell.effort.tokens for cell in cells),
    )
