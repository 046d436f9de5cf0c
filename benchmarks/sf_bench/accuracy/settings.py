"""Settings of `sf-bench accuracy`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sf_server.settings import AtLeastOne, AtLeastZero, Rate


class AccuracySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of `sf-bench accuracy`."""

    bundle: Annotated[tuple[str, ...], Meta(min_length=1)]
    train: str
    validation: str
    work: str
    model: str | None = None
    samples: AtLeastOne = 4000
    seeds: Annotated[tuple[AtLeastZero, ...], Meta(min_length=1)] = (0, 1, 2)
    epochs: AtLeastOne = 1
    max_phrase_tokens: AtLeastOne | None = None
    batch_samples: AtLeastOne = 16
    learning_rate: Rate = 3e-4
    arms: tuple[str, ...] = ()
    jobs: Annotated[int, Meta(ge=1, le=256)] = 1
    fp32_rows: bool = False
    threads: Annotated[int, Meta(ge=1, le=4096)] = 1
    json: bool = False
