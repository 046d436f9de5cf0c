"""What the server lets in: pure decisions about greetings, batches and single samples.

A problem of one sample gives `Rejected` for that sample and keeps the rest; a problem of the whole message gives `Refusal`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sf_contract.activations import NO_TARGET, EncodedSample, unpack
from sf_contract.codec import EncodedRows
from sf_contract.errors import MalformedMessage
from sf_contract.frames import Buffer
from sf_contract.manifest import Geometry, Manifest, Task
from sf_contract.messages import (
    PROTOCOL_VERSION,
    ActivationBatch,
    Hello,
    Inquiry,
    Refusal,
    RefusalCode,
    Rejected,
    RejectionCode,
)

LIVE_S: Final = 60.0
"""A device that was silent for so long has lost its claim to its name."""

RETRY_SOON_S: Final = 1.0
RETRY_AUTHORIZATION_S: Final = 5.0
RETRY_WHEN_FULL_S: Final = 30.0
_DETAIL_CHARACTERS: Final = 2048
_SHORT_ID: Final = 12


@dataclass(frozen=True, slots=True)
class Session:
    """What a device said about itself in its `Hello`."""

    device: str
    outbox: str
    bundle_id: str


@dataclass(frozen=True, slots=True)
class Presence:
    """A session and when its device was last heard (seconds, any fixed origin)."""

    session: Session
    last_heard_s: float


def judge_hello(
    hello: Hello,
    *,
    bundles: Mapping[str, Manifest],
    owner: str | None,
    present: Iterable[Presence],
    now_s: float,
) -> Session | Refusal:
    """Let a device in, or say why not.

    Args:
        bundles: manifests by bundle id.
        owner: the device that has used this outbox before, None if nobody has.
        present: sessions of other connections that have not finished.
        now_s: the time on the clock of `present`.
    """
    refused = (
        _judge_protocol(hello.protocol)
        or _judge_bundle(hello.bundle_id, hello.self_test_error, bundles)
        or _judge_name(hello.device, hello.outbox, owner=owner, present=present, now_s=now_s)
    )
    return refused or Session(device=hello.device, outbox=hello.outbox, bundle_id=hello.bundle_id)


def judge_inquiry(
    inquiry: Inquiry,
    *,
    bundles: Mapping[str, Manifest],
    owner: str | None,
    present: Iterable[Presence],
    now_s: float,
) -> Refusal | None:
    """What a `Hello` with the same in it would be refused for; None when it would be let in. Arguments as there."""
    error = 0.0 if inquiry.self_test_error is None else inquiry.self_test_error
    return (
        _judge_protocol(inquiry.protocol)
        or (None if inquiry.bundle_id is None else _judge_bundle(inquiry.bundle_id, error, bundles))
        or _judge_name(inquiry.device, inquiry.outbox, owner=owner, present=present, now_s=now_s)
    )


def judge_key(names: Collection[str], *, device: str, key_id: str) -> Refusal | None:
    """Refuse a message from a device whose key may not, or may no longer, use its name; None when it may.

    Args:
        names: what the key may be called, empty when it is not authorized.
        device: what it calls itself.
    """
    if device in names:
        return None
    if not names:
        return refusal(
            RefusalCode.NOT_AUTHORISED,
            f"the key {key_id} of {device} is not authorized any more; its .pub file was removed",
            retry_after_s=RETRY_AUTHORIZATION_S,
        )
    return refusal(
        RefusalCode.KEY_NAME,
        f"the key {key_id} may only be used by {' or '.join(sorted(names))}, and this device calls itself {device}",
    )


def judge_forgotten(device: str, banned: Collection[str]) -> Refusal | None:
    """Refuse a device that this run was told to forget and that nobody has let in again; `banned` are their names."""
    if device not in banned:
        return None
    return refusal(
        RefusalCode.NOT_AUTHORISED,
        f"this run was told to forget {device}; it comes in again after sf-server forget {device} --readmit",
    )


def judge_batch(
    batch: ActivationBatch,
    buffers: Sequence[Buffer],
    *,
    session: Session,
    manifest: Manifest,
    waiting_bytes: int,
    credit_bytes: int,
) -> list[EncodedSample] | Refusal:
    """Samples of a batch, not yet examined one by one.

    Args:
        session: the sender's session; `manifest` is its bundle's.
        waiting_bytes: what the sender has in flight besides this batch.
        credit_bytes: what it may have in flight; a single sample is let through even if it alone is larger.
    """
    if batch.bundle_id != session.bundle_id:
        return refusal(
            RefusalCode.BUNDLE,
            f"{session.device} greeted with bundle {session.bundle_id[:_SHORT_ID]} "
            f"and sent a batch of {batch.bundle_id[:_SHORT_ID]}",
        )
    in_flight = waiting_bytes + sum(buffer.nbytes for buffer in buffers)
    alone = waiting_bytes == 0 and len(batch.samples) == 1
    if in_flight > credit_bytes and not alone:
        return refusal(
            RefusalCode.OVER_CREDIT,
            f"{session.device} has {in_flight} bytes in flight; it was granted {credit_bytes}",
            retry_after_s=RETRY_SOON_S,
        )
    try:
        return unpack(
            batch,
            buffers,
            codec=manifest.wire_codec,
            hidden=manifest.geometry.hidden,
            with_targets=manifest.task.task is Task.CAUSAL_LM,
        )
    except MalformedMessage as problem:
        return refusal(RefusalCode.MALFORMED, problem.what)


def find_fault(sample: EncodedSample, manifest: Manifest) -> Rejected | None:
    """Why a sample can never be trained on; None when it can."""
    fault = find_rows_fault(sample.ordinal, sample.rows, manifest.geometry)
    if fault is not None:
        return fault
    match manifest.task.task:
        case Task.TEXT_CLASSIFICATION:
            return _find_label_fault(sample, classes=len(manifest.task.labels))
        case Task.CAUSAL_LM:
            return _find_target_fault(sample, vocabulary=manifest.geometry.vocabulary)


def find_rows_fault(ordinal: int, rows: EncodedRows, geometry: Geometry) -> Rejected | None:
    """Why rows can never be used, whatever they are for; None when they can."""
    if rows.tokens > geometry.max_tokens:
        detail = f"{rows.tokens} tokens; the bundle allows {geometry.max_tokens}"
        return Rejected(ordinal=ordinal, code=RejectionCode.TOO_LONG, detail=detail)
    if not rows.is_finite():
        detail = "the rows hold numbers that are not finite"
        return Rejected(ordinal=ordinal, code=RejectionCode.NOT_FINITE, detail=detail)
    return None


def refusal(code: RefusalCode, detail: str, *, retry_after_s: float | None = None) -> Refusal:
    """A refusal whose detail fits the message."""
    return Refusal(code=code, detail=detail[:_DETAIL_CHARACTERS], retry_after_s=retry_after_s)


def _judge_protocol(version: int) -> Refusal | None:
    if version == PROTOCOL_VERSION:
        return None
    return refusal(
        RefusalCode.PROTOCOL,
        f"the device speaks protocol version {version}, this server ({PROTOCOL_VERSION}) does not; "
        "install the same SplitFrozen version on both ends",
    )


def _judge_bundle(bundle_id: str, self_test_error: float, bundles: Mapping[str, Manifest]) -> Refusal | None:
    manifest = bundles.get(bundle_id)
    if manifest is None:
        known = ", ".join(known_id[:_SHORT_ID] for known_id in bundles)
        return refusal(
            RefusalCode.BUNDLE,
            f"the device has bundle {bundle_id[:_SHORT_ID]}, this server trains for {known}; "
            "copy the server's bundle to the device",
        )
    limit = manifest.self_test.max_mean_error
    if self_test_error > limit:
        return refusal(
            RefusalCode.SELF_TEST,
            f"the device computes the test vectors with {self_test_error:.2%} mean error, "
            f"the bundle allows {limit:.2%}; export a bundle for its kind of processor",
        )
    return None


def _judge_name(
    device: str, outbox: str | None, *, owner: str | None, present: Iterable[Presence], now_s: float
) -> Refusal | None:
    if owner is not None and owner != device:
        return refusal(
            RefusalCode.DEVICE_NAME,
            f"the outbox of {device} belongs to {owner}: it was copied, or the device was renamed; "
            f"name the device {owner} again, or let it begin with a new outbox",
        )
    for other in present:
        silent_s = now_s - other.last_heard_s
        if other.session.device == device and other.session.outbox != outbox and silent_s < LIVE_S:
            return refusal(
                RefusalCode.DEVICE_NAME,
                f"another device called {device} is connected; give each device its own name",
                retry_after_s=LIVE_S - max(silent_s, 0.0),
            )
    return None


def _find_label_fault(sample: EncodedSample, *, classes: int) -> Rejected | None:
    if sample.label is None:
        return _rejected(sample, RejectionCode.LABEL, f"no label; the bundle has {classes} classes")
    if sample.label >= classes:
        return _rejected(sample, RejectionCode.LABEL, f"label {sample.label}; the bundle has {classes} classes")
    return None


def _find_target_fault(sample: EncodedSample, *, vocabulary: int) -> Rejected | None:
    if sample.label is not None:
        return _rejected(sample, RejectionCode.LABEL, "a class label; the bundle is for causal language modelling")
    targets = sample.targets
    if targets is None or bool((targets == NO_TARGET).all()):
        return _rejected(sample, RejectionCode.TARGETS, "no token to predict")
    strange = targets[(targets != NO_TARGET) & ((targets < 0) | (targets >= np.int64(vocabulary)))]
    if strange.size:
        return _rejected(
            sample, RejectionCode.TARGETS, f"target {int(strange[0])}; the vocabulary has {vocabulary} tokens"
        )
    return None


def _rejected(sample: EncodedSample, code: RejectionCode, detail: str) -> Rejected:
    return Rejected(ordinal=sample.ordinal, code=code, detail=detail)
