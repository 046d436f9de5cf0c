"""What `sf-bench overlap` found: every way at every ratio, beside what the speeds alone would take. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import msgspec

from sf_bench.overlap.measure import Measured
from sf_bench.overlap.theory import IN_TURN, OURS, WAYS, Way, expected, saving
from sf_bench.quality.environment import Environment
from sf_bench.studies.report import table

TARGET_PERCENT = 65.0
TARGET_RATIO = 1.0

_HOW = """Real: the server's ingest and trainer processes, the model behind the bundle's cut, the wire, the store, every
training step; devices speak the protocol of sf-edge. Emulated: what a device computes; it waits for the stated time for each
sample and sends made-up rows of the bundle's shape. So no accuracy is reported here, and devices take no processor time from
the server. The clock runs from the first device's beginning to the last step; starting, loading and publishing are not part
of it. Ratio: time of all devices working at the same time for an epoch's samples, over the server's time for them; at 1 they
keep pace. A device's own time for its share is that ratio times the server's time for the whole epoch."""


class Point(msgspec.Struct, frozen=True):
    """One way at one ratio.

    Attributes:
        wall_s: mean over the repeats, and each.
        expected_s: what the speeds alone would take.
        saved_percent: of this way's wall clock by `ours` at the same ratio; None where that was not measured.
        expected_percent: the same by the speeds alone.
        computed: samples that all devices computed and sent.
    """

    way: str
    ratio: float
    wall_s: float
    each_s: tuple[float, ...]
    expected_s: float
    saved_percent: float | None
    expected_percent: float
    computed: int
    trained: int
    steps: int
    busy_s: float


class OverlapReport(msgspec.Struct, frozen=True):
    """All points. `is_within_target`: ours takes 65 % less than devices in turn, at a ratio of 1."""

    base_model: str
    split_layer: int
    first_layer: int
    devices: int
    samples: int
    tokens: int
    epochs: int
    server_s_per_sample: float
    points: tuple[Point, ...]
    ways: dict[str, str]
    is_within_target: bool | None
    environment: Environment
    command: str
    target_percent: float = TARGET_PERCENT
    method: str = _HOW


def overlap_report(
    measured: Sequence[Measured], *, base_model: str, split_layer: int, environment: Environment, command: str
) -> OverlapReport:
    """From all measurements of one call."""
    key = measured[0].key
    points = points_of(measured)
    return OverlapReport(
        base_model=base_model,
        split_layer=split_layer,
        first_layer=key.first_layer,
        devices=key.devices,
        samples=key.samples,
        tokens=key.tokens,
        epochs=key.epochs,
        server_s_per_sample=key.server_s_per_sample or 0.0,
        points=points,
        ways={name: WAYS[name].says for name in dict.fromkeys(point.way for point in points)},
        is_within_target=is_within_target(points),
        environment=environment,
        command=command,
    )


def points_of(measured: Sequence[Measured]) -> tuple[Point, ...]:
    """Repeats together, and each way against ours."""
    groups: dict[tuple[float, str], list[Measured]] = defaultdict(list)
    for one in measured:
        groups[one.key.ratio, one.key.way].append(one)
    mean = {key: fmean(one.wall_s for one in group) for key, group in groups.items()}
    return tuple(_point(group, ours_s=mean.get((ratio, OURS.name))) for (ratio, _), group in sorted(groups.items()))


def is_within_target(points: Sequence[Point]) -> bool | None:
    """None when what decides was not measured."""
    decisive = [point for point in points if point.way == IN_TURN.name and point.ratio == TARGET_RATIO]
    saved = decisive[0].saved_percent if decisive else None
    return None if saved is None else saved >= TARGET_PERCENT


def overlap_markdown(report: OverlapReport, *, plot: str | None = None) -> str:
    """For reading."""
    rows = [
        [
            f"{point.ratio:g}",
            point.way,
            f"{point.wall_s:.1f}",
            f"{point.expected_s:.1f}",
            "-" if point.saved_percent is None or point.way == OURS.name else f"{point.saved_percent:.1f} %",
            "-" if point.way == OURS.name else f"{point.expected_percent:.1f} %",
            str(point.computed),
            str(point.steps),
        ]
        for point in report.points
    ]
    heading = (
        "ratio",
        "way",
        "wall clock s",
        "by speeds alone s",
        "ours saves",
        "by speeds alone",
        "computed",
        "steps",
    )
    lines = ["# Computing once, while the server trains", "", *_ground(report), "", *table(heading, rows), ""]
    lines += [f"- `{name}`: {says}." for name, says in report.ways.items()]
    if report.is_within_target is not None:
        word = "is" if report.is_within_target else "is not"
        lines += ["", f"Aim: {report.target_percent:g} % less than in-turn at ratio {TARGET_RATIO:g}. It {word} met."]
    if plot is not None:
        lines += ["", f"![Wall clock of the ways of training over the speed ratio]({plot})"]
    return "\n".join([*lines, "", report.method, ""])


def _ground(report: OverlapReport) -> list[str]:
    return [
        f"{report.base_model}, cut {report.split_layer}, LoRA from layer {report.first_layer} on; {report.devices} devices, "
        f"{report.samples} samples of {report.tokens} tokens, {report.epochs} epochs; the server takes "
        f"{1000 * report.server_s_per_sample:.1f} ms for a sample.",
        "",
        f"{report.environment.line}.",
        "",
        "```",
        report.command,
        "```",
    ]


def _point(group: Sequence[Measured], *, ours_s: float | None) -> Point:
    first = group[0]
    wall_s = fmean(one.wall_s for one in group)
    return Point(
        way=first.key.way,
        ratio=first.key.ratio,
        wall_s=wall_s,
        each_s=tuple(one.wall_s for one in group),
        expected_s=first.expected_s,
        saved_percent=None if ours_s is None else saving(ours_s, wall_s),
        expected_percent=saving(_expected(OURS, first), _expected(WAYS[first.key.way], first)),
        computed=first.computed,
        trained=first.trained,
        steps=first.steps,
        busy_s=fmean(one.busy_s for one in group),
    )


def _expected(way: Way, one: Measured) -> float:
    return expected(way, ratio=one.key.ratio, epochs=one.key.epochs, devices=one.key.devices)
