"""How the reports of the studies are written: tables in Markdown, points, intervals, and what a comparison rests on. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sf_bench.quality.environment import Environment
from sf_bench.quality.phrases import PoolCounts
from sf_bench.quality.statistics import Interval, Paired


class Ground(msgspec.Struct, frozen=True):
    """What all cells of a study have in common.

    Attributes:
        base_model: its name.
        split_layers: cuts of the bundles.
        stated_errors: mean relative row error of each bundle, as it states it.
        first_layer: the lowest layer with LoRA, in every way of training.
        floor: accuracy of always giving the commonest answer; None where there are no classes.
        command: the command line.
    """

    base_model: str
    split_layers: tuple[int, ...]
    stated_errors: tuple[float, ...]
    first_layer: int
    samples: int
    seeds: tuple[int, ...]
    epochs: int
    learning_rate: float
    batch_samples: int
    validation: int
    floor: float | None
    pool: PoolCounts
    environment: Environment
    command: str


def ground_lines(ground: Ground) -> list[str]:
    """What was trained on what, in prose."""
    pool = ground.pool
    cuts = ", ".join(map(str, ground.split_layers))
    floor = "" if ground.floor is None else f" (always the commonest answer: {ground.floor:.1%})"
    epochs = f"{ground.epochs} epoch{'s' if ground.epochs > 1 else ''}"
    return [
        f"{ground.base_model}, {'cuts' if len(ground.split_layers) > 1 else 'cut'} {cuts}, LoRA from layer "
        f"{ground.first_layer} on; {ground.samples} training samples, {epochs}, {ground.batch_samples} samples per step, "
        f"peak learning rate {ground.learning_rate:g}; seeds {', '.join(map(str, ground.seeds))}; judged by "
        f"{ground.validation} validation samples{floor}.",
        "",
        f"Training samples were drawn from {pool.left} of {pool.rows} rows; left out: {pool.repeated} repeated or "
        f"contradictory, {pool.in_validation} that occur in validation, {pool.too_long} too long, {pool.unusable} unusable.",
        "",
        f"{ground.environment.line}.",
        "",
        "```",
        ground.command,
        "```",
    ]


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with columns of even width, readable on a terminal too."""
    widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"

    return [line(heading), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)]


def percents(values: Sequence[float]) -> str:
    """Parts of one as percent, seed by seed."""
    return ", ".join(f"{100 * value:.2f}" for value in values) + " %"


def mean_percent(values: Sequence[float]) -> str:
    """Their mean."""
    return f"{100 * sum(values) / len(values):.2f} %"


def interval(found: Interval | None) -> str:
    """`-0.17 to +1.02`."""
    return "-" if found is None else f"{found.low:+.2f} to {found.high:+.2f}"


def difference_row(name: str, paired: Paired) -> list[str]:
    """A row of `DIFFERENCES`."""
    by_seed = ", ".join(f"{value:+.2f}" for value in paired.by_seed)
    return [name, by_seed, f"{paired.mean:+.2f}", interval(paired.over_samples), interval(paired.over_seeds)]


DIFFERENCES = ("difference, points", "by seed", "mean", "95 % over samples", "95 % over seeds")
