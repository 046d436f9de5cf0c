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
DEFAULT_PREFETCH: Final = 2

AtLeastOne = Annotated[int, Meta(ge=1, le=2**31)]
AtLeastZero = Annotated[int, Meta(ge=0, le=2**31)]
BundlePath = Annotated[str, Meta(min_length=1)]
Rate = Annotated[float, Meta(gt=0, le=10)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]

MAX_BUNDLES: Final = 64
MAX_RANK: Final = 4096
LAYER_RANKS_PATTERN: Final = r"^[0-9]{1,5}(-[0-9]{1,5})?=[0-9]{1,4}\Z"

MAY_CHANGE_ON_RESUME: Final = frozenset(
    {
        "authorized",
        "batch_samples",  # the rest of a window that was begun is dealt out anew
        "batch_tokens",  # the same
        "bind",
        "bundle",  # compared by their ids
        "checkpoint_every_s",
        "compile",  # the same sums, in another order
        "credit_bytes",
        "dashboard",
        "device_mb_per_s",
        "dtype",  # a cure where numbers are not finite, as are the learning rates
        "expect_devices",  # when the data is complete
        "expect_samples",  # the same, and how fast the learning rate falls from now on
        "gradient_checkpointing",
        "head_learning_rate",
        "insecure",
        "json",
        "keep_checkpoints",
        "key",
        "learning_rate",
        "max_connections",
        "max_store_bytes",
        "metrics_address",
        "micro_batch_tokens",  # the same sums, in another order
        "model",  # compared by the hash in the bundle's manifest
        "node_rank",
        "nodes",  # a node that is lost may be left out
        "open_without_login",
        "pipeline_microbatches",  # as the next two and the ranks: the same sums, added in another order
        "pipeline_schedule",
        "pipeline_stages",
        "prefetch",
        "publish",
        "rank_timeout_s",
        "ranks",
        "rendezvous",
        "resume",
        "retention_days",
        "run",
        "step_deadline",
        "tensorboard",
        "threads",
        "trusted_network",
        "validate",
    }
)
"""Settings that do not change what a run computes, and those that are a cure when it cannot go on: then it goes on from where
it is, with every sample still trained on exactly `epochs` times. All others must stay as they were."""


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every option of `sf-server train`; the descriptions are the texts of `--help`."""

    bundle: Annotated[
        BundlePath | Annotated[tuple[BundlePath, ...], Meta(min_length=1, max_length=MAX_BUNDLES)],
        Meta(
            description="bundle folder, as sf-export wrote it; given several times, devices with different cuts of one "
            "base model train one adapter"
        ),
    ]
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
    retention_days: Annotated[
        Annotated[float, Meta(gt=0, le=36_500)] | None,
        Meta(
            description="remove samples that came longer ago, at the start and once a day, between windows; by default none"
        ),
    ] = None
    credit_bytes: Annotated[
        Annotated[int, Meta(ge=64 * 1024, le=1 << 40)],
        Meta(description="bytes a device may have sent without an answer"),
    ] = DEFAULT_CREDIT_BYTES

    epochs: Annotated[AtLeastOne, Meta(description="times each training sample is trained on")] = 3
    batch_tokens: Annotated[AtLeastOne, Meta(description="tokens per training step, at most")] = 2048
    batch_samples: Annotated[AtLeastOne, Meta(description="samples per training step, at most")] = 16
    micro_batch_tokens: Annotated[
        AtLeastOne | None,
        Meta(
            description="tokens, with padding, that are computed at one time: a larger batch is computed in parts, which takes "
            "less memory and gives the same step; by default the whole batch"
        ),
    ] = None
    prefetch: Annotated[
        Annotated[int, Meta(ge=0, le=1000)],
        Meta(description="batches that are prepared beside the training step, in a thread of their own; 0: none"),
    ] = DEFAULT_PREFETCH
    window_samples: Annotated[
        AtLeastOne, Meta(description="samples that are shuffled together while the first epoch arrives")
    ] = 256
    step_deadline: Annotated[
        Seconds | None,
        Meta(
            description="while the first epoch arrives: once training had nothing to do for so long, it takes what has "
            "arrived instead of a full window; by default it waits"
        ),
    ] = None
    balance: Annotated[
        Literal["device", "class", "none"],
        Meta(description="weigh samples so that a device, or a class, with many of them does not drown the others"),
    ] = "none"
    pool: Annotated[
        bool,
        Meta(
            description="mix the samples of all devices; --no-pool, for comparison, waits for all of them and trains on one "
            "device after the other"
        ),
    ] = True
    seed: Annotated[AtLeastZero, Meta(description="seed of shuffling and of new weights")] = 0

    learning_rate: Annotated[Rate, Meta(description="peak learning rate of the LoRA weights")] = 3e-4
    head_learning_rate: Annotated[Rate, Meta(description="peak learning rate of the classification head")] = 1e-3
    warmup_steps: Annotated[AtLeastZero, Meta(description="steps over which the learning rate rises")] = 20
    weight_decay: Annotated[Annotated[float, Meta(ge=0, le=1)], Meta(description="AdamW weight decay")] = 0.01
    lora_rank: Annotated[Annotated[int, Meta(ge=1, le=MAX_RANK)], Meta(description="rank of the LoRA matrices")] = 8
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
    lora_first_layer: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)] | None,
        Meta(
            description="lowest layer with LoRA; samples pass the layers below it once and are kept as they leave them. "
            "By default the deepest cut among the bundles"
        ),
    ] = None
    lora_layer_ranks: Annotated[
        tuple[Annotated[str, Meta(pattern=LAYER_RANKS_PATTERN)], ...],
        Meta(
            description="other ranks for single layers, numbered as in the whole model: 10-20=16,29=4; "
            "alpha stays, so such a layer's updates are multiplied by alpha / its rank"
        ),
    ] = ()
    lora_rslora: Annotated[bool, Meta(description="scale updates by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)")] = (
        False
    )
    lora_dora: Annotated[
        bool, Meta(description="learn the size of weights apart from their direction (DoRA, arXiv 2402.09353)")
    ] = False

    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="where to train")] = "auto"
    dtype: Annotated[Literal["auto", "bf16", "fp32"], Meta(description="type of the frozen base weights")] = "auto"
    gradient_checkpointing: Annotated[
        bool,
        Meta(
            description="compute layers again for the backward pass instead of remembering them: less memory, more time"
        ),
    ] = False
    compile: Annotated[
        bool,
        Meta(description="compile the layers with torch.compile: a slow start, needs a C++ compiler on a processor"),
    ] = False
    threads: Annotated[
        Annotated[int, Meta(ge=0, le=4096)], Meta(description="processor threads for training; 0: all usable cores")
    ] = 0
    checkpoint_every_s: Annotated[Seconds, Meta(description="seconds between checkpoints")] = 30
    keep_checkpoints: Annotated[
        Annotated[int, Meta(ge=1, le=1000)], Meta(description="newest checkpoints that are kept, besides the best one")
    ] = 3
    publish: Annotated[
        Literal["last", "best"],
        Meta(description="epoch whose weights become the adapter: the last, or the best on the held-out samples"),
    ] = "last"
    validate: Annotated[bool, Meta(description="evaluate on the samples that devices held out")] = True
    dashboard: Annotated[
        str | None,
        Meta(
            description="serve a page about this run on HOST:PORT, like 127.0.0.1:8765 (port 0: any that is free; off: none)"
        ),
    ] = None
    tensorboard: Annotated[
        bool, Meta(description="write TensorBoard event files to tensorboard in --run, beside metrics.jsonl")
    ] = False
    metrics_address: Annotated[
        str | None, Meta(description="serve metrics for Prometheus alone on HOST:PORT; the dashboard has them too")
    ] = None
    open_without_login: Annotated[
        bool,
        Meta(
            description="let --dashboard and --metrics-address be reached from other machines, by anybody: they have no login "
            "and are not encrypted"
        ),
    ] = False
    ranks: Annotated[
        Annotated[int, Meta(ge=1, le=1024)],
        Meta(description="trainer processes on this machine that share each batch, usually one per GPU"),
    ] = 1
    nodes: Annotated[
        Annotated[int, Meta(ge=1, le=1024)],
        Meta(description="machines that train one adapter, each with its own devices, store and --run"),
    ] = 1
    node_rank: Annotated[
        Annotated[int, Meta(ge=0, le=1023)],
        Meta(description="which of them this one is, from 0; node 0 publishes the adapter"),
    ] = 0
    rendezvous: Annotated[str | None, Meta(description="where nodes meet: HOST:PORT of node 0")] = None
    trusted_network: Annotated[
        bool,
        Meta(
            description="the nodes are in a network that nobody else reaches; what they exchange is neither encrypted nor "
            "protected by keys"
        ),
    ] = False
    rank_timeout_s: Annotated[
        Seconds, Meta(description="a process that others of the training wait for so long counts as lost")
    ] = 1800
    pipeline_stages: Annotated[
        Annotated[int, Meta(ge=1, le=256)],
        Meta(
            description="processes on this machine over which one back end is spread, where it is too large for one GPU"
        ),
    ] = 1
    pipeline_schedule: Annotated[
        Literal["1f1b", "zero-bubble"],
        Meta(description="order of work in the stages; zero-bubble computes gradients of weights where 1f1b waits"),
    ] = "zero-bubble"
    pipeline_microbatches: Annotated[
        Annotated[int, Meta(ge=0, le=4096)],
        Meta(description="parts of a batch that are under way in the stages, a multiple of them; 0: twice as many"),
    ] = 0
    json: Annotated[bool, Meta(description="results and errors as JSON")] = False

    @property
    def bundle_paths(self) -> tuple[Path, ...]:
        """Folders of the run's bundles, as given."""
        return (Path(self.bundle),) if isinstance(self.bundle, str) else tuple(map(Path, self.bundle))

    def layer_ranks(self) -> dict[int, int]:
        """Ranks of single layers, by layer.

        Raises:
            UsageError: a range runs backwards, a rank is 0 or too large, or a layer is named twice.
        """
        ranks: dict[int, int] = {}
        for part in self.lora_layer_ranks:
            layers, _, rank = part.partition("=")
            first, _, last = layers.partition("-")
            named = range(int(first), int(last or first) + 1)
            if not named or not 1 <= int(rank) <= MAX_RANK or ranks.keys() & set(named):
                raise UsageError(
                    f"--lora-layer-ranks {part} runs backwards, has a rank outside 1 to {MAX_RANK}, or repeats a layer",
                    cure="give each layer once, as in --lora-layer-ranks 10-20=16,29=4",
                )
            ranks |= dict.fromkeys(named, int(rank))
        return ranks

    def link_choice(self) -> LinkChoice:
        """What was said about receiving devices."""
        return LinkChoice(
            run=Path(self.run), bind=self.bind, key=self.key, authorized=self.authorized, insecure=self.insecure
        )


def check_train_settings(settings: TrainSettings) -> None:
    """Refuse combinations that no single field can rule out.

    Raises:
        UsageError: not exactly one way to know that the data is complete, ranks of layers that contradict one another, or a
            link that cannot be as asked for.
    """
    if (settings.expect_devices is None) == (settings.expect_samples is None):
        found = "neither" if settings.expect_devices is None else "both"
        raise UsageError(
            f"training must know when the data is complete, and {found} of --expect-devices and --expect-samples is given",
            cure="give one of them: the number of devices that will finish, or of training samples that will arrive",
        )
    settings.layer_ranks()
    check_loop(settings)
    check_link(settings.link_choice())


def check_loop(settings: TrainSettings) -> None:
    """Refuse ways to train that contradict one another; a resume may bring them about too.

    Raises:
        UsageError: they do.
    """
    if settings.step_deadline is not None and not settings.pool:
        raise UsageError(
            "--no-pool trains on one device after the other, once all have finished; --step-deadline has no part in that",
            cure="leave one of them out",
        )
    if settings.publish == "best" and not settings.validate:
        raise UsageError(
            "--publish best needs the scores of the held-out samples, and --no-validate leaves them out",
            cure="leave one of them out",
        )


def with_absolute_paths(settings: TrainSettings) -> TrainSettings:
    """The settings with paths that do not depend on the working directory; hub ids stay as they are."""
    model = settings.model
    if model is not None and Path(model).exists():
        model = str(Path(model).absolute())
    bundles = tuple(str(path.absolute()) for path in settings.bundle_paths)
    return msgspec.structs.replace(
        settings,
        bundle=bundles[0] if len(bundles) == 1 else bundles,
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
