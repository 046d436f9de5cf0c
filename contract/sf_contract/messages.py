"""The messages between a device and the server. Frozen, closed, unknown fields refused.

Device to server: `Hello`, `ActivationBatch`, `Finished`, `Ping`, `Inquiry`, `PredictRequest`.
Server to device: `Welcome`, `Refusal`, `Ack`, `FinishNoted`, `Pong`, `Approval`, `PredictAnswer`.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sf_contract import limits

PROTOCOL_VERSION: Final = 1

DeviceName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
OutboxId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
BundleId = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Ordinal = Annotated[int, Meta(ge=0, lt=2**53)]
ShortText = Annotated[str, Meta(max_length=256)]
LongText = Annotated[str, Meta(max_length=2048)]
Count = Annotated[int, Meta(ge=0, lt=2**53)]
CreditBytes = Annotated[int, Meta(ge=0, le=1 << 40)]
Tokens = Annotated[int, Meta(ge=1, le=limits.MAX_TOKENS_PER_SAMPLE)]
ActivityText = Annotated[str, Meta(pattern=rf"^[ -~°]{{1,{limits.MAX_ACTIVITY_CHARACTERS}}}\Z")]
"""Signs that any terminal shows as they are, and the degree sign."""
LabelIndex = Annotated[int, Meta(ge=0, lt=limits.MAX_LABELS)]


class Role(enum.StrEnum):
    """What a sample is for."""

    TRAIN = "train"
    VALIDATION = "validation"


class RefusalCode(enum.StrEnum):
    """Why the server does not accept a device's messages now."""

    HELLO_FIRST = "hello-first"
    PROTOCOL = "protocol"
    BUNDLE = "bundle"
    SELF_TEST = "self-test"
    DEVICE_NAME = "device-name"
    KEY_NAME = "key-name"
    NOT_AUTHORISED = "not-authorised"
    STORE_FULL = "store-full"
    MALFORMED = "malformed"
    OVER_CREDIT = "over-credit"
    CLOSED = "closed"


class RejectionCode(enum.StrEnum):
    """Why one sample was rejected for good."""

    BUNDLE = "bundle"
    SHAPE = "shape"
    NOT_FINITE = "not-finite"
    LABEL = "label"
    TOO_LONG = "too-long"
    TARGETS = "targets"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all messages."""


class Hello(Message, frozen=True, tag="hello"):
    """First message of a connection.

    `self_test_error` is the mean relative error this machine measured on the bundle's test vectors;
    `waiting_samples` is what the outbox still holds.
    """

    protocol: int
    software: ShortText
    device: DeviceName
    outbox: OutboxId
    bundle_id: BundleId
    self_test_error: Annotated[float, Meta(ge=0, le=1e6)]
    waiting_samples: Count


class Welcome(Message, frozen=True, tag="welcome"):
    """The device may send; never more than `credit_bytes` unacknowledged."""

    software: ShortText
    credit_bytes: CreditBytes


class Refusal(Message, frozen=True, tag="refusal"):
    """The device must stop sending; `retry_after_s` is None when trying again is pointless."""

    code: RefusalCode
    detail: LongText
    retry_after_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None


class SampleHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sample of a batch; `label` is None for causal language modelling, where targets travel as a buffer."""

    ordinal: Ordinal
    tokens: Tokens
    role: Role
    label: LabelIndex | None = None


class ActivationBatch(Message, frozen=True, tag="batch"):
    """Packed samples. Buffers: rows `[sum(tokens), hidden]`, scales `[sum(tokens), groups]`, targets int32 `[sum(tokens)]`.

    Scales are left out when the codec has none, targets when the task has none; see `sf_contract.activations`.
    """

    bundle_id: BundleId
    samples: Annotated[tuple[SampleHeader, ...], Meta(min_length=1, max_length=limits.MAX_SAMPLES_PER_BATCH)]


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="verdict", tag="stored"):
    """The sample is durable on the server."""

    ordinal: Ordinal


class AlreadyStored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="verdict", tag="already-stored"):
    """The sample was durable before; this was a repeat."""

    ordinal: Ordinal


class Rejected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="verdict", tag="rejected"):
    """The sample will never be accepted."""

    ordinal: Ordinal
    code: RejectionCode
    detail: ShortText


Verdict = Stored | AlreadyStored | Rejected


class Ack(Message, frozen=True, tag="ack"):
    """Verdicts, sent only after the stored samples are durable, and the byte credit from now on."""

    verdicts: Annotated[tuple[Verdict, ...], Meta(min_length=1, max_length=limits.MAX_SAMPLES_PER_BATCH)]
    credit_bytes: CreditBytes


class Finished(Message, frozen=True, tag="finished"):
    """The source is exhausted and every sample is acknowledged."""

    samples: Count
    rejected: Count
    skipped_rows: Count


class FinishNoted(Message, frozen=True, tag="finish-noted"):
    """`Finished` is durable on the server."""


class Ping(Message, frozen=True, tag="ping", omit_defaults=True):
    """Are you there? `activity` is what holds the device back, as in "paused: battery at 12 %"; None when nothing does."""

    activity: ActivityText | None = None


class Pong(Message, frozen=True, tag="pong"):
    """Yes."""


class Inquiry(Message, frozen=True, tag="inquiry"):
    """Would a `Hello` with this be welcome? The server judges it like one and keeps nothing of it; None is not judged."""

    protocol: int
    software: ShortText
    device: DeviceName
    outbox: OutboxId | None = None
    bundle_id: BundleId | None = None
    self_test_error: Annotated[float, Meta(ge=0, le=1e6)] | None = None


class Approval(Message, frozen=True, tag="approval"):
    """It would; `clock_s` is the server's time in seconds since 1970."""

    software: ShortText
    clock_s: Annotated[float, Meta(ge=0, le=1e12)]


class PredictRequest(Message, frozen=True, tag="predict"):
    """Which classes do these texts belong to? Judged by itself, without a session, and nothing of it is kept.

    `tokens` are the lengths of the texts. Buffers: rows `[sum(tokens), hidden]` and, where the codec has them, scales
    `[sum(tokens), groups]`, as in an `ActivationBatch`. `classes` is how many of the likeliest classes the answer names.
    A device sends its next request when it has the answer to the last one.
    """

    device: DeviceName
    bundle_id: BundleId
    number: Ordinal
    tokens: Annotated[tuple[Tokens, ...], Meta(min_length=1, max_length=limits.MAX_TEXTS_PER_REQUEST)]
    classes: Annotated[int, Meta(ge=1, le=limits.MAX_CLASSES_PER_TEXT)] = limits.MAX_CLASSES_PER_TEXT


class ClassProbability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class and how likely it is."""

    label: LabelIndex
    probability: Annotated[float, Meta(ge=0, le=1)]


class Predicted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="verdict", tag="predicted"):
    """The likeliest classes of one text, the likeliest first."""

    classes: Annotated[tuple[ClassProbability, ...], Meta(min_length=1, max_length=limits.MAX_CLASSES_PER_TEXT)]


class PredictAnswer(Message, frozen=True, tag="predictions"):
    """The answer to the request with this number: one prediction per text, in their order; a text whose rows cannot be used is
    `Rejected`, its place in the request being the ordinal."""

    number: Ordinal
    predictions: Annotated[
        tuple[Predicted | Rejected, ...], Meta(min_length=1, max_length=limits.MAX_TEXTS_PER_REQUEST)
    ]


AnyMessage = (
    Hello
    | Welcome
    | Refusal
    | ActivationBatch
    | Ack
    | Finished
    | FinishNoted
    | Ping
    | Pong
    | Inquiry
    | Approval
    | PredictRequest
    | PredictAnswer
)
