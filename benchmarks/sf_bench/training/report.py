"""What a comparison says: speeds, ratios and memory, and what was equal. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from sf_bench.quality.environment import Environment
from sf_bench.rivals.turns import Spread, ratios_to, spread_of
from sf_bench.training.contest import BASELINE, CONTESTANTS, Contest, Contestant
from sf_bench.training.protocol import Prepared, Profile
from sf_bench.training.settings import TrainingBenchSettings

EQUAL = (
    "samples and their tokens; batches and their order (but for hugging-face-by-length); base weights and their dtype; rank, "
    "alpha and targets of LoRA; AdamW, its learning rate for LoRA and weight decay; clipping; threads; sdpa attention; loss "
    "(mean over the targets of a batch)"
)
NOT_EQUAL = (
    "the layers that are computed and that learn (said in each row); what enters them (rows of the wire's codec, decoded, "
    "against token ids); the learning rate of a new classification head (1e-3 against 3e-4); random draws of LoRA's A. Neither "
    "writes metrics or checkpoints. On a GPU the rival's AdamW is the fused one"
)


class Row(msgspec.Struct, frozen=True):
    """One contestant; ratios are within rounds, to the baseline where it took part.

    Attributes:
        tokens_per_s, tokens_per_cpu_s: real tokens, without padding, by the clock and by processor time.
        ratio, cpu_ratio: against the baseline.
        peak_mb, device_mb: most memory of the process, loading included; most on the GPU.
        first_loss, last_loss: of the counted turns, so that it shows that everyone learns.
    """

    name: str
    says: str
    layers: int
    learning: int
    tokens_per_s: Spread
    tokens_per_cpu_s: Spread
    ratio: Spread | None
    cpu_ratio: Spread | None
    peak_mb: float
    device_mb: float
    first_loss: float
    last_loss: float


class TrainingReport(msgspec.Struct, frozen=True):
    """The whole report."""

    command: str
    environment: Environment
    settings: TrainingBenchSettings
    prepared: Prepared
    rows: tuple[Row, ...]
    lift_tokens_per_s: float | None
    profile: Profile | None
    equal: str = EQUAL
    not_equal: str = NOT_EQUAL


def training_report(
    contest: Contest, *, settings: TrainingBenchSettings, environment: Environment, command: str
) -> TrainingReport:
    """The report of a contest."""
    baseline = next((each for each in contest.contestants if each.name == BASELINE), None)
    lift_s = contest.prepared.lift_s
    return TrainingReport(
        command=command,
        environment=environment,
        settings=settings,
        prepared=contest.prepared,
        rows=tuple(_row(each, baseline) for each in contest.contestants),
        lift_tokens_per_s=contest.prepared.tokens / lift_s if lift_s else None,
        profile=contest.profile,
    )


def training_markdown(report: TrainingReport) -> str:
    """For reading."""
    settings, prepared = report.settings, report.prepared
    lines = [
        f"# Training step: {prepared.about}",
        "",
        f"{report.environment.line}; {settings.device}, {settings.dtype}.",
        f"Rounds: {settings.rounds}, each with {settings.steps} steps of everyone. Batches: at most {settings.batch_samples} "
        "samples and "
        f"{settings.batch_tokens} tokens from {prepared.samples} samples ({prepared.padding:.1%} of the padded batches is "
        "padding). Median and quartiles over the rounds; ratios within a round.",
        "",
        f"| contestant | layers computed | tokens/s | against {BASELINE} | by processor time | peak memory, MB | loss |",
        "|---|---|---|---|---|---|---|",
        *map(_line, report.rows),
        "",
        *(
            f"- `{row.name}`: {CONTESTANTS[row.name]}; {row.says}; {row.learning:,} weights learn"
            for row in report.rows
        ),
        "",
        f"Equal: {report.equal}.",
        "",
        f"Not equal: {report.not_equal}.",
    ]
    if report.lift_tokens_per_s is not None:
        lines += ["", f"Lifting, once per sample, not in the times above: {report.lift_tokens_per_s:.0f} tokens/s."]
    if report.profile is not None:
        lines += ["", *_profile_lines(report.profile)]
    return "\n".join([*lines, "", f"`{report.command}`", ""])


def _row(contestant: Contestant, baseline: Contestant | None) -> Row:
    speeds, cpu_speeds = _speeds(contestant)
    base = None if baseline is None else _speeds(baseline)
    losses = [loss for turn in contestant.turns for loss in turn.losses]
    per_turn = len(contestant.turns[0].losses)
    return Row(
        name=contestant.name,
        says=contestant.ready.says,
        layers=contestant.ready.layers,
        learning=contestant.ready.learning,
        tokens_per_s=spread_of(speeds),
        tokens_per_cpu_s=spread_of(cpu_speeds),
        ratio=None if base is None else spread_of(ratios_to(base[0], speeds)),
        cpu_ratio=None if base is None else spread_of(ratios_to(base[1], cpu_speeds)),
        peak_mb=max(turn.peak_mb for turn in contestant.turns),
        device_mb=max(turn.device_mb for turn in contestant.turns),
        first_loss=statistics.mean(losses[:per_turn]),
        last_loss=statistics.mean(losses[-per_turn:]),
    )


def _speeds(contestant: Contestant) -> tuple[Sequence[float], Sequence[float]]:
    wall = [turn.tokens / turn.seconds for turn in contestant.turns]
    return wall, [turn.tokens / turn.cpu_s for turn in contestant.turns]


def _line(row: Row) -> str:
    memory = f"{row.peak_mb:.0f}" + (f" + {row.device_mb:.0f} on the GPU" if row.device_mb else "")
    return (
        f"| {row.name} | {row.layers} | {_spread(row.tokens_per_s, '.0f')} | {_spread(row.ratio, '.2f')} | "
        f"{_spread(row.cpu_ratio, '.2f')} | {memory} | {row.first_loss:.3f} to {row.last_loss:.3f} |"
    )


def _spread(spread: Spread | None, form: str) -> str:
    return "-" if spread is None else f"{spread.median:{form}} ({spread.low:{form}}-{spread.high:{form}})"


def _profile_lines(profile: Profile) -> list[str]:
    kinds = list(profile.shares.items())
    return [
        "## Profile of our step",
        "",
        f"The bottleneck: {kinds[0][0]} ({kinds[0][1]:.0%} of the time)"
        + (f"; next: {kinds[1][0]} ({kinds[1][1]:.0%})." if kinds[1:] else "."),
        "",
        *(f"- {share:.1%} {kind}" for kind, share in kinds),
        "",
        "```",
        profile.table,
        "```",
    ]
