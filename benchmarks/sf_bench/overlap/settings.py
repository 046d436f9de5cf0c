"""Settings of `sf-bench overlap`."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sf_server.settings import AtLeastOne

Ratio = Annotated[float, Meta(gt=0, le=1000)]

QUICK: Final = {"samples": 32, "ratios": (1.0,), "ways": ("ours", "in-turn"), "epochs": 2}
"""What `--quick` puts in place of the defaults: enough to see that everything works, too little to be a measurement."""


class OverlapSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options; the descriptions are the texts of `--help`."""

    bundle: Annotated[str, Meta(description="bundle folder; rows are made up, but in its shape and for its model")]
    work: Annotated[str, Meta(description="folder for finished measurements")]
    model: Annotated[str | None, Meta(description="base model; by default the one the bundle names")] = None
    devices: Annotated[Annotated[int, Meta(ge=1, le=256)], Meta(description="simulated devices")] = 4
    samples: Annotated[
        Annotated[int, Meta(ge=1, le=10**6)],
        Meta(description="samples of an epoch; a multiple of devices times --batch-samples keeps all steps full"),
    ] = 128
    tokens: Annotated[AtLeastOne, Meta(description="tokens of each sample")] = 16
    epochs: Annotated[AtLeastOne, Meta(description="times each sample is trained on")] = 3
    ratios: Annotated[
        Annotated[tuple[Ratio, ...], Meta(min_length=1)],
        Meta(
            description="time that all devices at once need for an epoch's samples, over the server's time for them; "
            "comma-separated"
        ),
    ] = (0.25, 0.5, 1.0, 2.0, 4.0)
    ways: Annotated[
        Annotated[tuple[str, ...], Meta(min_length=1)], Meta(description="ways of training, comma-separated")
    ] = ("ours", "in-turn", "at-once")
    repeats: Annotated[AtLeastOne, Meta(description="times everything is measured")] = 1
    batch_samples: Annotated[AtLeastOne, Meta(description="samples per step")] = 8
    window_samples: Annotated[
        AtLeastOne, Meta(description="ours: samples the server waits for before it trains on them")
    ] = 16
    lora_first_layer: Annotated[
        AtLeastOne | None, Meta(description="lowest layer with LoRA; by default the bundle's cut")
    ] = None
    server_s_per_sample: Annotated[
        Annotated[float, Meta(gt=0, le=3600)] | None,
        Meta(description="what the devices are throttled by; by default measured first"),
    ] = None
    threads: Annotated[AtLeastOne, Meta(description="processor threads of the trainer")] = 1
    quick: Annotated[bool, Meta(description="a trial with few samples and one ratio, instead of the defaults")] = False
    json: Annotated[bool, Meta(description="one JSON document on standard output")] = False
    report: Annotated[str | None, Meta(description="write FILE.md, FILE.json and the plot FILE.svg")] = None
