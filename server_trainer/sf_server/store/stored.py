"""What is read back from the store: samples, device summaries, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from sf_contract.activations import TARGET_DTYPE, Targets
from sf_contract.codec import EncodedRows, WireCodec, row_dtype, scale_dtype
from sf_contract.int4 import Int4Parameters


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """What batching needs to know about a sample, without its rows."""

    seq: int
    device: str
    tokens: int
    label: int | None


@dataclass(frozen=True, slots=True)
class Origin:
    """What a sample is, for all time: the bundle that computed it, the outbox it comes from, and its number there."""

    bundle_id: str
    outbox: str
    ordinal: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredSample:
    """One sample. Its arrays are read-only views; `targets` is int32 `[tokens]` for causal language modelling."""

    seq: int
    device: str
    rows: EncodedRows
    label: int | None
    targets: Targets | None


@dataclass(frozen=True, slots=True)
class DeviceSummary:
    """One outbox of a device. Times are seconds since 1970, bytes are whole messages.

    `rejected` counts verdicts, `malformed` messages that were none. `activity` is what the device said holds it back, empty
    when nothing does, and `activity_s` when it last said so.
    """

    device: str
    outbox: str
    bundle_id: str
    self_test_error: float
    first_seen_s: float
    last_seen_s: float
    bytes_in: int
    bytes_out: int
    samples: int
    repeats: int
    rejected: int
    malformed: int
    skipped_rows: int
    finished: bool
    activity: str
    activity_s: float


@dataclass(frozen=True, slots=True)
class Removals:
    """What was removed from a store on purpose.

    Attributes:
        train_samples: how many of them, in all.
        banned: names of forgotten devices that nobody has readmitted.
    """

    train_samples: int = 0
    banned: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What the store holds, and what was removed from it. A device has finished when the outbox it used last has.

    Nobody waits for what was removed: `train_samples_arrived` and `devices_settled` count it as arrived and finished.
    """

    train_samples: int
    train_tokens: int
    validation_samples: int
    validation_tokens: int
    devices: int
    finished_devices: int
    removed: Removals

    @property
    def train_samples_arrived(self) -> int:
        """Training samples ever stored."""
        return self.train_samples + self.removed.train_samples

    @property
    def devices_settled(self) -> int:
        """Devices that have finished or were forgotten."""
        return self.finished_devices + len(self.removed.banned)


@dataclass(frozen=True, slots=True)
class RoleTotal:
    """Samples of one role: how many, with how many tokens, and the highest `seq` among them (0 when there is none)."""

    samples: int
    tokens: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class StoreSize:
    """Bytes that count towards the quota, and bytes of the files on the disk."""

    used_bytes: int
    file_bytes: int


SampleRow = tuple[int, str, int | None, int, str, bytes, bytes, bytes | None]


def held_back(summaries: Sequence[DeviceSummary]) -> list[str]:
    """Which devices that have not finished say what holds them back, as in `pi-3 (paused: battery at 12 %)`.

    Args:
        summaries: the outbox a device used last at the end of each device.
    """
    latest = {summary.device: summary for summary in summaries}
    return [f"{device} ({summary.activity})" for device, summary in latest.items() if is_held_back(summary)]


def is_held_back(summary: DeviceSummary) -> bool:
    """True for a device that said so last; one that has finished has nothing left to hold back."""
    return bool(summary.activity) and not summary.finished


def device_summary(row: Sequence[Any]) -> DeviceSummary:
    """A summary from its columns, in the order of the fields."""
    return msgspec.convert(dict(zip(DeviceSummary.__dataclass_fields__, row, strict=True)), DeviceSummary, strict=False)


def stored_sample(row: SampleRow, int4: Int4Parameters | None) -> StoredSample:
    """A sample from its columns; `int4` is what decoding its rows needs, where their codec is int4."""
    seq, device, label, tokens, codec, rows, scales, targets = row
    kind = WireCodec(codec)
    encoded = EncodedRows(
        codec=kind,
        rows=np.frombuffer(rows, dtype=row_dtype(kind)).reshape(tokens, -1),
        scales=np.frombuffer(scales, dtype=scale_dtype(kind)).reshape(tokens, -1 if scales else 0),
        int4=int4,
    )
    numbers = None if targets is None else np.frombuffer(targets, dtype=TARGET_DTYPE)
    return StoredSample(seq=seq, device=device, rows=encoded, label=label, targets=numbers)
