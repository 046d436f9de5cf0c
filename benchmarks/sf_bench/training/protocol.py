"""What the measuring process and its workers say to each other: a job, then one JSON object per line.

parent -> worker   the job as an argument, then lines: "turn", "profile"; the end of the stream ends the worker
worker -> parent   `Ready` once; for "turn" a `Turn`; for "profile" a `Profile`; or `Failed`, which is the last one
"""

from __future__ import annotations

from typing import Literal

import msgspec

from sf_bench.training.settings import TrainingBenchSettings

Name = Literal["split", "split-lifted", "hugging-face", "hugging-face-upper", "hugging-face-lifted-layers"]


class Job(msgspec.Struct, frozen=True):
    """What a worker does: `name` is a contestant's, or "prepare"."""

    name: str
    settings: TrainingBenchSettings


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A worker can take turns.

    Attributes:
        says: what it trains, and how.
        layers: layers it computes.
        learning: weights that learn.
    """

    says: str
    layers: int
    learning: int


class Turn(msgspec.Struct, frozen=True, tag=True):
    """Some training steps, with everything between them.

    Attributes:
        seconds: on the clock.
        cpu_s: processor time of the process.
        tokens: real tokens, without padding.
        losses: of every step.
        peak_mb: most memory that the process ever had in RAM.
        device_mb: most memory on the GPU, 0 without one.
    """

    seconds: float
    cpu_s: float
    tokens: int
    losses: tuple[float, ...]
    peak_mb: float
    device_mb: float


class Profile(msgspec.Struct, frozen=True, tag=True):
    """Where a step spends its time.

    Attributes:
        table: the profiler's, most expensive operators first.
        shares: part of the time by kind of work, largest first.
    """

    table: str
    shares: dict[str, float]


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The samples are there.

    Attributes:
        samples, tokens: how many.
        padding: part of the padded batches that is padding.
        lift_s: seconds it took to lift all of them; None when none were.
        task: of the model.
        about: what is trained, for the report.
    """

    samples: int
    tokens: int
    padding: float
    lift_s: float | None
    task: str
    about: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A worker cannot go on."""

    reason: str


Reply = Ready | Turn | Profile | Prepared | Failed
