"""What the study of completions found. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sf_bench.quality.statistics import RelativeLoss, relative_losses
from sf_bench.studies.answers import Answers
from sf_bench.studies.completions import CENTRAL, SPLIT, CompletionsCell
from sf_bench.studies.report import Ground, ground_lines, interval, table

TARGET_PERCENT = 1.0

_HOW = """Loss: cross-entropy of the completion tokens of held-out problems in nats, summed over all and divided by their
number; prompts do not count. Both ways share samples, batches, learning rates, initial weights and the layers with LoRA, so
that only the rows differ. The interval is over the choice of held-out problems (Student's t, linearised ratio), the trained
weights taken as given. Answers are greedy, from `sf-server generate`'s own code, with the adapter and with the merged model,
both behind the bundle's front end, and are compared token by token."""


class WayLoss(msgspec.Struct, frozen=True):
    """One way, nats per completion token by seed; `alone`: the adapter in the untouched whole fp32 model."""

    way: str
    own: tuple[float, ...]
    alone: tuple[float, ...]
    steps: tuple[int, ...]
    tokens: tuple[int, ...]


class CompletionsReport(msgspec.Struct, frozen=True):
    """The whole comparison. `is_within_target`: the split's loss is at most one percent above the centralised."""

    ground: Ground
    ways: tuple[WayLoss, ...]
    own: RelativeLoss | None
    alone: RelativeLoss | None
    answers: tuple[Answers, ...]
    is_within_target: bool | None
    target_percent: float = TARGET_PERCENT
    method: str = _HOW


def completions_report(ground: Ground, cells: dict[str, list[CompletionsCell]]) -> CompletionsReport:
    """From the cells of one or both ways."""
    own = alone = None
    if SPLIT in cells and CENTRAL in cells:
        split, central = cells[SPLIT], cells[CENTRAL]
        reference, targets = [cell.own.loss_sums for cell in central], central[0].own.targets
        own = relative_losses([cell.own.loss_sums for cell in split], reference, targets)
        alone = relative_losses([cell.alone.loss_sums for cell in split], reference, targets)
    return CompletionsReport(
        ground=ground,
        ways=tuple(_line(found) for found in cells.values()),
        own=own,
        alone=alone,
        answers=tuple(cell.answers for cell in cells.get(SPLIT, []) if cell.answers is not None),
        is_within_target=None if own is None else own.mean <= TARGET_PERCENT,
    )


def completions_markdown(report: CompletionsReport) -> str:
    """For reading."""
    rows = [[line.way, _losses(line.own), _losses(line.alone), ", ".join(map(str, line.steps))] for line in report.ways]
    heading = ("way", "loss by seed, as trained", "loss by seed, adapter alone in fp32", "steps")
    lines = ["# Completions", "", *ground_lines(report.ground), "", *table(heading, rows)]
    pairs = (("split - central", report.own), ("split, adapter alone - central", report.alone))
    differences = [_difference(name, found) for name, found in pairs if found is not None]
    if differences:
        lines += ["", *table(("difference of the loss", "by seed", "all", "95 % over problems"), differences)]
    if report.is_within_target is not None:
        word = "is" if report.is_within_target else "is not"
        lines += ["", f"Aim: at most {report.target_percent:g} % above centralised LoRA. It {word} met."]
    for answers in report.answers:
        lines += ["", _answered(answers)]
    return "\n".join([*lines, "", report.method, ""])


def _answered(answers: Answers) -> str:
    widest = f"; where they part, the merged model's own token is ahead by {answers.widest_gap:.2g} in logits at most"
    return (
        f"{answers.equal} of {len(answers.tokens)} greedy answers ({sum(answers.tokens)} tokens) are the merged model's to the "
        f"last token{'' if answers.equal == len(answers.tokens) else widest}."
    )


def _difference(name: str, found: RelativeLoss) -> list[str]:
    by_seed = ", ".join(f"{value:+.2f}" for value in found.by_seed)
    return [name, f"{by_seed} %", f"{found.mean:+.2f} %", f"{interval(found.over_texts)} %"]


def _losses(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _line(cells: Sequence[CompletionsCell]) -> WayLoss:
    return WayLoss(
        way=cells[0].way,
        own=tuple(cell.own.loss for cell in cells),
        alone=tuple(cell.alone.loss for cell in cells),
        steps=tuple(cell.effort.steps for cell in cells),
        tokens=tuple(cell.effort.tokens for cell in cells),
    )
