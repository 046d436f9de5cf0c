"""The plot of `sf-bench overlap`. The one door to matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sf_bench.overlap.report import OverlapReport, Point
from sf_bench.overlap.theory import OURS, WAYS, Way, expected, saving
from sf_contract.errors import UsageError

COLOURS: Final = {
    "ours": "#0072b2",
    "in-turn": "#d55e00",
    "at-once": "#e69f00",
    "cached": "#009e73",
    "pipelined": "#cc79a7",
}
"""Okabe and Ito's, which people with any colour vision can tell apart; markers differ too."""
MARKERS: Final = {"ours": "o", "in-turn": "s", "at-once": "^", "cached": "D", "pipelined": "v"}
FORMATS: Final = (".svg", ".png", ".pdf")


def draw(report: OverlapReport, path: Path) -> None:
    """Wall clock over the speed ratio, and what is saved: lines by the speeds alone, markers as measured.

    Raises:
        UsageError: the file's suffix names no format.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path} is no name for a plot", cure=f"let it end with {', '.join(FORMATS)}")
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    clock, saved = figure.subplots(1, 2)
    names = list(dict.fromkeys(point.way for point in report.points))
    low = min(point.ratio for point in report.points) / 1.3
    high = max(point.ratio for point in report.points) * 1.3
    ratios = np.geomspace(low, high, 200)
    for name in names:
        measured = [point for point in report.points if point.way == name]
        _draw_clock(clock, report, WAYS[name], ratios, measured)
        if name != OURS.name:
            _draw_saving(saved, report, WAYS[name], ratios, measured)
    _label(clock, "wall clock, server epochs", "Training time: lines from the speeds alone")
    clock.set_yscale("log", base=2)
    clock.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _label(saved, "saved, %", "What `ours` saves against the others")
    saved.axhline(report.target_percent, color="grey", linestyle=":", linewidth=1)
    saved.set_ylim(0, 100)
    with rc_context({"svg.hashsalt": "splitfrozen"}):  # the same names inside the file every time
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def _draw_clock(
    axes: Axes,
    report: OverlapReport,
    way: Way,
    ratios: np.ndarray[tuple[int], np.dtype[np.float64]],
    points: list[Point],
) -> None:
    unit_s = report.samples * report.server_s_per_sample
    theory = [_expected(report, way, float(ratio)) for ratio in ratios]
    colour = COLOURS[way.name]
    axes.plot(ratios, theory, color=colour, linewidth=1.5)
    axes.plot(
        [point.ratio for point in points],
        [point.wall_s / unit_s for point in points],
        MARKERS[way.name],
        color=colour,
        label=way.name,
    )


def _draw_saving(
    axes: Axes,
    report: OverlapReport,
    way: Way,
    ratios: np.ndarray[tuple[int], np.dtype[np.float64]],
    points: list[Point],
) -> None:
    theory = [saving(_expected(report, OURS, ratio), _expected(report, way, ratio)) for ratio in map(float, ratios)]
    colour = COLOURS[way.name]
    axes.plot(ratios, theory, color=colour, linewidth=1.5)
    found = [(point.ratio, point.saved_percent) for point in points if point.saved_percent is not None]
    axes.plot(
        [ratio for ratio, _ in found],
        [percent for _, percent in found],
        MARKERS[way.name],
        color=colour,
        label=f"against {way.name}",
    )


def _label(axes: Axes, vertical: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("devices' time over server's time for an epoch")
    axes.set_ylabel(vertical)
    axes.set_title(title, fontsize=11)
    axes.grid(visible=True, linewidth=0.4)
    axes.legend(frameon=False)


def _expected(report: OverlapReport, way: Way, ratio: float) -> float:
    return expected(way, ratio=ratio, epochs=report.epochs, devices=report.devices)
