"""Settings of the studies `sf-bench cuts`, `one-class` and `completions`: names, ranges, defaults and help in one place."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sf_server.settings import AtLeastOne, AtLeastZero, Rate

QUICK: Final = {"samples": 48, "seeds": (0,), "epochs": 1, "validation_samples": 40, "prompts": 2, "new_tokens": 8}
"""What `--quick` puts in place of the defaults: enough to see that everything works, far too little to decide anything."""


class StudySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options; the descriptions are the texts of `--help`."""

    bundle: Annotated[
        tuple[str, ...], Meta(min_length=1, description="bundle folder, as sf-export wrote it; cuts: several")
    ]
    train: Annotated[str, Meta(description="training file: .parquet (with pyarrow), .jsonl or .csv")]
    validation: Annotated[str, Meta(description="validation file; nothing is chosen or tuned by it")]
    work: Annotated[str, Meta(description="folder for finished and half-finished cells")]
    model: Annotated[str | None, Meta(description="base model; by default the one the bundle names")] = None
    samples: Annotated[AtLeastOne, Meta(description="training samples of each seed")] = 4000
    validation_samples: Annotated[
        AtLeastOne | None, Meta(description="judge by so many validation samples, drawn once; by default by all")
    ] = None
    seeds: Annotated[
        Annotated[tuple[AtLeastZero, ...], Meta(min_length=1)],
        Meta(description="a seed fixes samples, order, batches and all new weights; comma-separated"),
    ] = (0, 1, 2)
    epochs: Annotated[AtLeastOne, Meta(description="times each sample is trained on")] = 1
    max_phrase_tokens: Annotated[AtLeastOne | None, Meta(description="leave out longer samples")] = None
    batch_samples: Annotated[AtLeastOne, Meta(description="samples per step")] = 16
    learning_rate: Annotated[Rate, Meta(description="peak of the LoRA weights")] = 3e-4
    head_learning_rate: Annotated[Rate, Meta(description="peak of a new classification head")] = 1e-3
    lora_rank: Annotated[AtLeastOne, Meta(description="rank of the LoRA matrices")] = 8
    dtype: Annotated[Literal["fp32", "bf16"], Meta(description="type of the server's frozen weights")] = "fp32"
    devices: Annotated[AtLeastOne, Meta(description="one-class: devices, a multiple of the classes")] = 4
    prompts: Annotated[AtLeastZero, Meta(description="completions: prompts that are answered and compared")] = 20
    new_tokens: Annotated[AtLeastOne, Meta(description="completions: tokens of each answer, at most")] = 48
    ways: Annotated[tuple[str, ...], Meta(description="compute and report these ways of training only")] = ()
    jobs: Annotated[Annotated[int, Meta(ge=1, le=256)], Meta(description="cells computed at the same time")] = 1
    threads: Annotated[Annotated[int, Meta(ge=1, le=4096)], Meta(description="processor threads of each")] = 1
    quick: Annotated[
        bool, Meta(description="a minute's trial with few samples and one seed, instead of the defaults")
    ] = False
    json: Annotated[bool, Meta(description="one JSON document on standard output")] = False
    report: Annotated[str | None, Meta(description="write the report there too, as FILE.md and FILE.json")] = None
