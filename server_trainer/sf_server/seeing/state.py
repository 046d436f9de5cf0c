"""The state of a run at one moment: typed and frozen, the same for the terminal, for Prometheus and for the dashboard.

Times are seconds since 1970; bytes are whole messages on the link, and files on the disk. None is what nobody knows (yet).
"""

from __future__ import annotations

import enum

import msgspec


class Phase(enum.StrEnum):
    """What the run is doing."""

    WAITING = "waiting"
    """The trainer waits for samples; devices may be sending."""
    TRAINING = "training"
    STOPPED = "stopped"
    """Nobody works on it; `sf-server train --resume` goes on."""
    DONE = "done"
    """Every sample was trained on as often as asked, and the adapter is published."""


class DeviceStatus(enum.StrEnum):
    """What a device is doing, as far as the server knows."""

    SENDING = "sending"
    WAITING = "waiting"
    """Connected, with nothing new for a while: its source has nothing, or it computes slowly."""
    PAUSED = "paused"
    """Held back by itself; `DeviceState.reason` says why, in its own words."""
    FINISHED = "finished"
    GONE = "gone"
    """Silent for longer than its heartbeat allows, and not finished."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the parts of a `RunState`."""


class BundleState(Part, frozen=True):
    """A bundle of the run; `layer_weights_known` is false where the compute of its layers is estimated from their width."""

    bundle_id: str
    cut: int
    layers: int
    hidden: int
    wire_codec: str
    forward_flops_per_token: float
    layer_weights_known: bool


class RunInfo(Part, frozen=True):
    """What was asked for.

    `address` is where devices are received, None before the first start; `window_samples` are trained on together while the
    first epoch arrives.
    """

    folder: str
    base_model: str
    task: str
    labels: tuple[str, ...]
    epochs: int
    expect_devices: int | None
    expect_samples: int | None
    window_samples: int
    learning_rate: float
    address: str | None
    bundles: tuple[BundleState, ...]


class ProgressState(Part, frozen=True):
    """How far training is.

    Attributes:
        epoch: 1 is the first; 0 before the first step.
        samples_trained: each as often as it was trained on.
        part_done: 0 to 1, of all epochs over the samples that are known now; None as long as samples still arrive.
        loss: of the last step.
        learning_rate: of the LoRA weights, in the last step.
        tokens_per_s: over the last minute; 0 when nothing was trained in it.
        skipped_steps: steps left out because a gradient was not finite.
        last_step_s: when the last step was written down.
    """

    step: int = 0
    epoch: int = 0
    samples_trained: int = 0
    tokens_trained: int = 0
    part_done: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    skipped_steps: int = 0
    last_step_s: float | None = None


class CurvePoint(Part, frozen=True):
    """A point of the loss curve: the mean of the steps that end with `step`."""

    step: int
    epoch: int
    loss: float


class ValidationPoint(Part, frozen=True):
    """A validation on the samples that devices held out; `floor` is the accuracy of always giving the commonest answer."""

    step: int
    epoch: int
    samples: int
    loss: float
    accuracy: float
    floor: float


class DeviceState(Part, frozen=True):
    """One device, all its outboxes together.

    Attributes:
        cut: of the bundle it used last; None when that bundle is not one of the run's.
        reason: what holds it back, in its own words; empty unless `status` is paused.
        samples_per_s: over the last seconds; None until it was watched for a moment.
        bytes_in, bytes_out: from and to the device.
        samples: stored, of both roles. `repeats` came again and were not stored again; `rejected` can never be trained on.
        skipped: rows of its source that it could not use.
        malformed: messages that were none.
    """

    name: str
    cut: int | None
    status: DeviceStatus
    reason: str
    samples: int
    samples_per_s: float | None
    bytes_in: int
    bytes_out: int
    last_seen_s: float
    repeats: int
    rejected: int
    skipped: int
    malformed: int
    outboxes: int


class StoreState(Part, frozen=True):
    """What the store holds. `used_bytes` counts towards `quota_bytes`; `file_bytes` is what lies on the disk."""

    train_samples: int
    validation_samples: int
    train_tokens: int
    validation_tokens: int
    used_bytes: int
    file_bytes: int
    quota_bytes: int


class QueueState(Part, frozen=True):
    """What waits. `untrained` are training samples that the first epoch has not come to yet.

    `lifted` are samples that are kept lifted to the first layer with LoRA; None where nothing is lifted.
    """

    untrained: int
    lifted: int | None


class SavingsState(Part, frozen=True):
    """What the devices did not have to compute and send, by rule; see `sf_server.seeing.savings`.

    Attributes:
        forward_flops: forward passes of later epochs, which the stored activations made unnecessary.
        backward_flops: backward passes through the layers on the device, of all epochs.
        spent_flops: forward passes the devices did compute, once for each sample.
        upload_bytes: what sending the activations again in later epochs would have taken.
        part: saved / (saved + spent), 0 to 1.
        is_estimated: the number of weights in the layers is estimated from their width.
    """

    forward_flops: float = 0.0
    backward_flops: float = 0.0
    spent_flops: float = 0.0
    upload_bytes: float = 0.0
    part: float = 0.0
    is_estimated: bool = True


class RunState(Part, frozen=True):
    """Everything at one moment. `loss_curve` and `validations` are bounded, whatever the length of the run."""

    taken_s: float
    phase: Phase
    run: RunInfo
    progress: ProgressState
    loss_curve: tuple[CurvePoint, ...]
    validations: tuple[ValidationPoint, ...]
    devices: tuple[DeviceState, ...]
    store: StoreState
    queue: QueueState
    savings: SavingsState


def to_json(state: RunState) -> bytes:
    """The state as one JSON document; numbers that are not finite become null."""
    return msgspec.json.encode(state)
