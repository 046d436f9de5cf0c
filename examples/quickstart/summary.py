"""The demo's result: the numbers of `summary.json`, and the same numbers as the text a person reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from labelled import LabelledText
from live_table import aligned, count, size


class DeviceResult(msgspec.Struct, frozen=True):
    """One device, as counted by itself; `rows` are the lines of its private file."""

    name: str
    labels: tuple[str, ...]
    rows: int
    forward_passes: int | None
    uploads: int | None
    repeated_uploads: int | None
    bytes_up: int | None
    bytes_down: int | None
    cpu_s: float | None


class ServerResult(msgspec.Struct, frozen=True):
    """The server. `samples_trained` counts a sample once per epoch; held-out samples are stored but not trained on."""

    epochs: int
    samples_stored: int | None
    repeats: int | None
    samples_held_out: int | None
    samples_trained: int | None

    @property
    def samples_to_train(self) -> int | None:
        """Stored samples that are not held out."""
        if self.samples_stored is None or self.samples_held_out is None:
            return None
        return self.samples_stored - self.samples_held_out


class BundleResult(msgspec.Struct, frozen=True):
    """The bundle: bytes of its files, and the mean relative error of its activations against fp32."""

    nbytes: int
    mean_error: float
    p99_error: float


class Accuracy(msgspec.Struct, frozen=True):
    """Accuracy on rows no device has, through the quantized and the fp32 front end; fractions of 1."""

    rows: int
    templates_unseen: bool
    bundle: float
    fp32: float
    majority_class: float


class Phase(msgspec.Struct, frozen=True):
    """A part of the demo and how long it took."""

    name: str
    seconds: float


class Summary(msgspec.Struct, frozen=True):
    """Everything in `summary.json`."""

    model: str
    split_layer: int
    accuracy: Accuracy
    devices: tuple[DeviceResult, ...]
    server: ServerResult
    bundle: BundleResult
    phases: tuple[Phase, ...]
    run: str


def majority_share(rows: Sequence[LabelledText]) -> float:
    """Accuracy of always answering with the most frequent label."""
    return max(Counter(row.label for row in rows).values()) / len(rows)


def each_sample_once(summary: Summary) -> bool:
    """True when the counters of both sides prove: computed once, uploaded once, trained once per epoch."""
    passes = _total(device.forward_passes for device in summary.devices)
    uploads = _total(device.uploads for device in summary.devices)
    repeated = _total(device.repeated_uploads for device in summary.devices)
    server = summary.server
    if server.samples_to_train is None:
        return False
    is_once = passes == uploads == server.samples_stored and repeated == 0
    return is_once and server.samples_trained == server.samples_to_train * server.epochs


def summary_text(summary: Summary) -> str:
    """The summary for a person."""
    parts = [
        *_accuracy_lines(summary.accuracy),
        "",
        *_device_lines(summary.devices),
        "",
        *_once_lines(summary),
        "",
        *_cost_lines(summary),
        "",
        "Try next:",
        f'  sf-server predict --run {summary.run} "wake me up at six tomorrow"',
        f"  sf-server merge --run {summary.run} --out {Path(summary.run).with_name('merged')}",
    ]
    return "\n".join(parts)


def _accuracy_lines(accuracy: Accuracy) -> list[str]:
    kind = "sentences of templates never trained on" if accuracy.templates_unseen else "rows kept aside"
    return [
        f"Accuracy on {accuracy.rows:,} {kind}:",
        f"  {accuracy.bundle:6.1%}  with the devices' quantized front end",
        f"  {accuracy.fp32:6.1%}  with the fp32 front end",
        f"  {accuracy.majority_class:6.1%}  by always answering with the most frequent label",
    ]


def _device_lines(devices: Sequence[DeviceResult]) -> list[str]:
    header = ("device", "holds only", "rows", "forward passes", "uploads", "up", "down", "CPU")
    rows = [header, *(_device_cells(device) for device in devices)]
    return aligned(rows, left=2)


def _device_cells(device: DeviceResult) -> tuple[str, ...]:
    return (
        device.name,
        ", ".join(device.labels),
        count(device.rows),
        count(device.forward_passes),
        count(device.uploads),
        size(device.bytes_up),
        size(device.bytes_down),
        "-" if device.cpu_s is None else f"{device.cpu_s:.1f} s",
    )


def _once_lines(summary: Summary) -> list[str]:
    server = summary.server
    claim = f"Each sample was computed once, uploaded once and trained {server.epochs} times:"
    if not each_sample_once(summary):
        claim = "The counters do not show that each sample was computed once, uploaded once and trained once per epoch:"
    passes = count(_total(device.forward_passes for device in summary.devices))
    uploads = count(_total(device.uploads for device in summary.devices))
    repeated = count(_total(device.repeated_uploads for device in summary.devices))
    return [
        claim,
        f"  devices: {passes} forward passes, {uploads} uploads, {repeated} repeated",
        f"  server:  {count(server.samples_stored)} samples stored, {count(server.repeats)} repeats received",
        f"  server:  {count(server.samples_to_train)} samples x {server.epochs} epochs = "
        f"{count(server.samples_trained)} trained; {count(server.samples_held_out)} held out for validation",
    ]


def _cost_lines(summary: Summary) -> list[str]:
    bundle = summary.bundle
    phases = ", ".join(f"{phase.name} {phase.seconds:.0f} s" for phase in summary.phases)
    return [
        f"Bundle: {size(bundle.nbytes)}, layers 0-{summary.split_layer - 1} of {_model_name(summary.model)}; "
        f"activations differ from fp32 by {bundle.mean_error:.1%} on average (99 % of tokens: below {bundle.p99_error:.1%})",
        f"Time: {phases}; together {sum(phase.seconds for phase in summary.phases):.0f} s",
    ]


def _model_name(model: str) -> str:
    return Path(model).name if Path(model).exists() or model.endswith(".gguf") else model


def _total(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
