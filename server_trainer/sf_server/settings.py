"""Settings of `sf-server train`: names, ranges, defaults and help texts, each in one place."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sf_contract.errors import UsageError
from sf_contract.limits import MIB
from sf_server.link.security import LinkChoice, check_link

DEFAULT_BIND: Final = "tcp://127.0.0.1:5555"
DEFAULT_MAX_STORE_BYTES: Final = 20 * 1024 * MIB
DEFAULT_CREDIT_BYTES: Final = 4 * MIB
DEFAULT_CONNECTIONS: Final = 2_000

AtLeastOne = Annotated[int, Meta(ge=1, le=2**31)]
AtLeastZero = Annotated[int, Meta(ge=0, le=2**31)]
Rate = Annotated[float, Meta(gt=0, le=10)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]

MAY_CHANGE_ON_RESUME: Final = frozenset(
    {
        "authorized",
        "bind",
        "bundle",  # compared by its id
        "checkpoint_every_s",
        "credit_bytes",
        "device_mb_per_s",
        "expect_devices",  # when the data is complete
        "expect_samples",  # the same, and how fast the learning rate falls from now on
        "insecure",
        "json",
        "key",
        "max_connections",
        "max_store_bytes",
        "model",  # compared by the hash in the bundle's manifest
        "resume",
        "run",
        "threads",
        "validate",
    }
)
"""Settings that do not change what a run computes; all others must stay as they were."""


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every option of `sf-server train`; the descriptions are the texts of `--help`."""

    bundle: Annotated[str, Meta(description="bundle folder, as sf-export wrote it")]
    run: Annotated[str, Meta(description="folder of this run: store, checkpoints, adapter; made if it does not exist")]
    model: Annotated[
        str | None, Meta(description="base model: hub id, folder or .gguf file; by default the one the bundle names")
    ] = None
    resume: Annotated[bool, Meta(description="go on with the run in --run; settings not given stay as they were")] = (
        False
    )

    expect_devices: Annotated[
        AtLeastOne | None, Meta(description="the data is complete once this many devices have finished")
    ] = None
    expect_samples: Annotated[
        AtLeastOne | None,
        Meta(
            description="the data is complete once this many training samples are stored; the learning rate falls all the way"
        ),
    ] = None

    bind: Annotated[str, Meta(description="address on which devices are received")] = DEFAULT_BIND
    key: Annotated[
        str | None,
        Meta(
            description="this server's secret key; encrypts reception. Off loopback reception is encrypted anyway, by "
            "default with server.key in --run, which is made when it is missing"
        ),
    ] = None
    authorized: Annotated[
        str | None,
        Meta(
            description="folder with the public keys of devices, NAME.pub each; read again whenever it changes; encrypts "
            "reception. By default the folder authorized in --run"
        ),
    ] = None
    insecure: Annotated[
        bool, Meta(description="receive in the clear on other addresses than this machine's own loopback")
    ] = False
    max_connections: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)], Meta(description="connections at one time; who is silent goes first")
    ] = DEFAULT_CONNECTIONS
    device_mb_per_s: Annotated[
        Annotated[float, Meta(gt=0, le=100_000)] | None,
        Meta(description="megabytes of samples per second that each device may send; by default as many as it can"),
    ] = None
    max_store_bytes: Annotated[
        Annotated[int, Meta(ge=1 * MIB)], Meta(description="room for received samples; when full, devices wait")
    ] = DEFAULT_MAX_STORE_BYTES
    credit_bytes: Annotated[
        Annotated[int, Meta(ge=64 * 1024, le=1 << 40)],
        Meta(description="bytes a device may have sent without an answer"),
    ] = DEFAULT_CREDIT_BYTES

    epochs: Annotated[AtLeastOne, Meta(description="times each training sample is trained on")] = 3
    batch_tokens: Annotated[AtLeastOne, Meta(description="tokens per training step, at most")] = 2048
    batch_samples: Annotated[AtLeastOne, Meta(description="samples per training step, at most")] = 16
    window_samples: Annotated[
        AtLeastOne, Meta(description="samples that are shuffled together while the first epoch arrives")
    ] = 256
    seed: Annotated[AtLeastZero, Meta(description="seed of shuffling and of new weights")] = 0

    learning_rate: Annotated[Rate, Meta(description="peak learning rate of the LoRA weights")] = 3e-4
    head_learning_rate: Annotated[Rate, Meta(description="peak learning rate of the classification head")] = 1e-3
    warmup_steps: Annotated[AtLeastZero, Meta(description="steps over which the learning rate rises")] = 20
    weight_decay: Annotated[Annotated[float, Meta(ge=0, le=1)], Meta(description="AdamW weight decay")] = 0.01
    lora_rank: Annotated[Annotated[int, Meta(ge=1, le=4096)], Meta(description="rank of the LoRA matrices")] = 8
    lora_alpha: Annotated[
        Annotated[float, Meta(gt=0, le=65_536)], Meta(description="LoRA scale: updates are multiplied by alpha / rank")
    ] = 16
    lora_dropout: Annotated[
        Annotated[float, Meta(ge=0, lt=1)], Meta(description="dropout before the LoRA matrices")
    ] = 0
    lora_targets: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...],
        Meta(description="projections with LoRA, comma-separated (q_proj,v_proj); empty: all linear projections"),
    ] = ()

    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="where to train")] = "auto"
    dtype: Annotated[Literal["auto", "bf16", "fp32"], Meta(description="type of the frozen base weights")] = "auto"
    threads: Annotated[
        Annotated[int, Meta(ge=0, le=4096)], Meta(description="processor threads for training; 0: all usable cores")
    ] = 0
    checkpoint_every_s: Annotated[Seconds, Meta(description="seconds between checkpoints")] = 30
    validate: Annotated[bool, Meta(description="evaluate on the samples that devices held out")] = True
    json: Annotated[bool, Meta(description="results and errors as JSON")] = False

    def link_choice(self) -> LinkChoice:
        """What was said about receiving devices."""
        return LinkChoice(
            run=Path(self.run), bind=self.bind, key=self.key, authorized=self.authorized, insecure=self.insecure
        )


def check_train_settings(settings: TrainSettings) -> None:
    """Refuse combinations that no single field can rule out.

    Raises:
        UsageError: not exactly one way to know that the data is complete, or a link that cannot be as asked for.
    """
    if (settings.expect_devices is None) == (settings.expect_samples is None):
        found = "neither" if settings.expect_devices is None else "both"
        raise UsageError(
            f"training must know when the data is complete, and {found} of --expect-devices and --expect-samples is given",
            cure="give one of them: the number of devices that will finish, or of training samples that will arrive",
        )
    check_link(settings.link_choice())


def with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """The settings with paths that do not depend on the working directory; hub ids stay as they are."""
    model = settings.model
    if model is not None and Path(model).exists():
        model = str(Path(model).absolute())
    return msgspec.structs.replace(
        settings,
        bundle=str(Path(settings.bundle).absolute()),
        run=str(Path(settings.run).absolute()),
        model=model,
        key=_absolute(settings.key),
        authorized=_absolute(settings.authorized),
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def differences(old: TrainSettings, new: TrainSettings, *, apart_from: Collection[str]) -> list[str]:
    """Fields that differ, each as `--name old -> new`."""
    changed: list[str] = []
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if name not in apart_from and before != after:
            changed.append(f"--{name.replace('_', '-')} {_shown(before)} -> {_shown(after)}")
    return changed


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "(empty)"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    return str(value)
