"""Settings of `sf-bench training`."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=1_000_000)]

QUICK: Final[dict[str, Any]] = {"rounds": 1, "steps": 1, "batch_samples": 4, "random_tokens": 32}
"""A try of the command: every contestant, nothing to conclude from."""


class TrainingBenchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every option of `sf-bench training`; the descriptions are the texts of `--help`."""

    work: Annotated[str, Meta(description="folder for samples, lifted samples and logs; finished parts are used again")]
    bundle: Annotated[
        str | None, Meta(description="bundle that says what is trained: model, cut, task, text template, wire codec")
    ] = None
    data: Annotated[
        str | None, Meta(description=".jsonl or .csv file with the columns the bundle's template names")
    ] = None
    model: Annotated[str | None, Meta(description="base model, where the bundle names a local one")] = None
    random: Annotated[
        Annotated[str, Meta(pattern=r"^(llama-1b|llama-tiny)\Z")] | None,
        Meta(
            description="instead of a bundle: a causal model of random weights and random tokens, in the shape of llama-1b or "
            "llama-tiny"
        ),
    ] = None
    random_tokens: Annotated[Count, Meta(description="with --random: tokens of the longest sequence; lengths vary")] = (
        512
    )
    split_layer: Annotated[Count, Meta(description="with --random: the cut")] = 4
    lora_first_layer: Annotated[
        Count | None,
        Meta(description="measure later epochs too, with LoRA from this layer on and samples lifted to it"),
    ] = None

    contestants: Annotated[
        tuple[str, ...], Meta(description="who takes part, comma-separated; empty: all that can (listed below)")
    ] = ()
    rounds: Annotated[Count, Meta(description="rounds; everyone gets one turn in each")] = 7
    steps: Annotated[Count, Meta(description="training steps of a turn; the same batches for everyone")] = 4
    batch_tokens: Annotated[Count, Meta(description="tokens per training step, at most")] = 2048
    batch_samples: Annotated[Count, Meta(description="samples per training step, at most")] = 16
    lora_rank: Annotated[Count, Meta(description="rank of the LoRA matrices, on all linear projections")] = 8
    seed: Annotated[int, Meta(ge=0, description="seed of batches and new weights")] = 0

    device: Annotated[Literal["cpu", "cuda"], Meta(description="where everyone trains")] = "cpu"
    dtype: Annotated[Literal["auto", "bf16", "fp32"], Meta(description="type of everyone's frozen weights")] = "auto"
    threads: Annotated[Count, Meta(description="processor threads of everyone")] = 1
    prefetch: Annotated[int, Meta(ge=0, le=1000, description="batches that our feed prepares ahead; 0: none")] = 2
    micro_batch_tokens: Annotated[Count | None, Meta(description="of ours: tokens computed at one time")] = None
    gradient_checkpointing: Annotated[
        bool, Meta(description="everyone computes layers again for the backward pass")
    ] = False
    compile: Annotated[bool, Meta(description="of ours: compile the layers with torch.compile")] = False
    profile: Annotated[bool, Meta(description="add a table of the operators our step spends its time in")] = False

    report: Annotated[str | None, Meta(description="write FILE.json and FILE.md")] = None
    json: Annotated[bool, Meta(description="print the report as JSON")] = False
    quick: Annotated[bool, Meta(description="a try: few steps, nothing to conclude from")] = False
