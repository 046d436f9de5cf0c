"""What the commands report as JSON, as far as the demo shows it; whatever is missing is simply not known."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from sf_contract.errors import DataError

_METRICS_TAIL_BYTES: Final = 256_000
"""Holds about a thousand steps."""

T = TypeVar("T")


class EdgeReport(msgspec.Struct, frozen=True):
    """Printed by `sf-edge run --json` at its end; totals over the life of the outbox."""

    samples: int | None = None
    forward_passes: int | None = None
    uploaded_samples: int | None = None
    resent_samples: int | None = None
    acknowledged: int | None = None
    skipped: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    cpu_seconds: float | None = None


class StoredDevice(msgspec.Struct, frozen=True):
    """One element of the list that `sf-server devices --json` prints."""

    device: str
    samples: int | None = None
    repeats: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    finished: bool = False


class IngestRecord(msgspec.Struct, frozen=True):
    """The run's ingest.json: where devices are received."""

    address: str = ""


class MetricsLine(msgspec.Struct, frozen=True):
    """One line of the run's metrics.jsonl: a step of training, or the validation at the end of an epoch.

    `samples_trained` counts a sample once per epoch; `samples` of a validation are those that devices held out.
    """

    kind: str | None = None
    epoch: int | None = None
    step: int | None = None
    loss: float | None = None
    samples_trained: int | None = None
    samples: int | None = None
    accuracy: float | None = None


class Metrics(msgspec.Struct, frozen=True):
    """The newest line of each kind."""

    step: MetricsLine = MetricsLine()
    validation: MetricsLine = MetricsLine()


class Evaluation(msgspec.Struct, frozen=True):
    """Scores through one front end."""

    accuracy: float


class EvalReport(msgspec.Struct, frozen=True):
    """Printed by `sf-server eval --json`: scores through the bundle's quantized front end and through the fp32 one."""

    bundle: Evaluation
    fp32: Evaluation


def report(text: str | bytes, kind: type[T], *, of: str) -> T:
    """A command's report.

    Raises:
        DataError: it did not print one.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as problem:
        raise DataError(
            f"{of} printed no usable report: {problem}", cure="install all parts of SplitFrozen in the same version"
        ) from problem


def report_or(text: str | bytes, default: T) -> T:
    """A report, or the default where there is none yet."""
    try:
        return msgspec.json.decode(text, type=type(default))
    except msgspec.DecodeError:
        return default


def stored_devices(text: str | bytes) -> list[StoredDevice]:
    """The server's list of devices; empty where there is none yet."""
    try:
        return msgspec.json.decode(text, type=list[StoredDevice])
    except msgspec.DecodeError:
        return []


def read_metrics(path: Path) -> Metrics:
    """The newest complete lines of a metrics file that may be being written."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _METRICS_TAIL_BYTES))
            complete, _, _ = stream.read().rpartition(b"\n")
    except FileNotFoundError:
        return Metrics()
    by_kind = {line.kind: line for line in (report_or(raw, MetricsLine()) for raw in complete.splitlines())}
    return Metrics(step=by_kind.get("step", MetricsLine()), validation=by_kind.get("validation", MetricsLine()))
