"""The state of a run in Prometheus' text format. The one door to prometheus_client.

Names follow Prometheus' conventions: base units, `_total` for what only grows. A resumed run may go back to an earlier step,
which Prometheus takes for a restart of the counter. The number of series is bounded however many devices there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sf_server.seeing.state import DeviceState, DeviceStatus, Phase, RunState

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_DEVICES: Final = 100
"""Devices with series of their own, the first by name; all others are summed under `OTHERS`."""

OTHERS: Final = "(others)"
"""No device can be called that."""

_DEVICE: Final = ("device",)


def prometheus_text(state: RunState) -> bytes:
    """The state as Prometheus scrapes it; `CONTENT_TYPE` belongs to it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(_metrics(state)))
    return generate_latest(registry)


class _Once(Collector):
    """Hands over metrics that are made already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metrics(state: RunState) -> Iterator[Metric]:
    yield from _run_metrics(state)
    yield from _progress_metrics(state)
    yield from _store_metrics(state)
    yield from _savings_metrics(state)
    yield _by("devices", "Devices by what they are doing.", "status", _status_counts(state.devices))
    yield from _device_metrics(_bounded(state.devices))


def _run_metrics(state: RunState) -> Iterator[Metric]:
    run = GaugeMetricFamily(
        "splitfrozen_run_info", "What the run trains; always 1.", labels=("base_model", "task", "cuts")
    )
    cuts = ",".join(str(bundle.cut) for bundle in state.run.bundles)
    run.add_metric((state.run.base_model, state.run.task, cuts), 1)
    yield run
    phases = {phase.value: float(phase is state.phase) for phase in Phase}
    yield _by("phase", "What the run is doing: 1 for its phase, 0 for the others.", "phase", phases)
    yield _gauge("epochs", "Times each sample is trained on.", state.run.epochs)


def _progress_metrics(state: RunState) -> Iterator[Metric]:
    progress = state.progress
    yield _gauge("epoch", "Epoch of the last step; 0 before the first.", progress.epoch)
    yield _counter("steps", "Training steps.", progress.step)
    yield _counter("skipped_steps", "Steps left out because a gradient was not finite.", progress.skipped_steps)
    yield _counter("samples_trained", "Samples trained on, each as often as it was.", progress.samples_trained)
    yield _counter("tokens_trained", "Rows trained on, over all epochs.", progress.tokens_trained)
    known = {
        "loss": ("Loss of the last step in nats per target.", progress.loss),
        "learning_rate": ("Learning rate of the LoRA weights in the last step.", progress.learning_rate),
        "tokens_per_second": ("Rows trained on per second, over the last minute.", progress.tokens_per_s),
        "last_step_timestamp_seconds": ("When the last step ended, since 1970.", progress.last_step_s),
    }
    yield from (_gauge(name, text, value) for name, (text, value) in known.items() if value is not None)
    if state.validations:
        newest = state.validations[-1]
        yield _gauge("validation_loss", "Newest loss on held-out samples in nats per target.", newest.loss)
        yield _gauge("validation_accuracy_ratio", "Newest accuracy on held-out samples, 0 to 1.", newest.accuracy)


def _store_metrics(state: RunState) -> Iterator[Metric]:
    store, queue = state.store, state.queue
    samples = {"train": float(store.train_samples), "validation": float(store.validation_samples)}
    tokens = {"train": float(store.train_tokens), "validation": float(store.validation_tokens)}
    yield _by("store_samples", "Samples in the store.", "role", samples)
    yield _by("store_tokens", "Rows in the store.", "role", tokens)
    yield _gauge("store_used_bytes", "Room taken of the store's quota.", store.used_bytes)
    yield _gauge("store_quota_bytes", "The store's quota.", store.quota_bytes)
    yield _gauge("store_file_bytes", "The store's files on the disk.", store.file_bytes)
    yield _gauge("queue_untrained_samples", "Samples that the first epoch has not come to yet.", queue.untrained)
    if queue.lifted is not None:
        yield _gauge("queue_lifted_samples", "Samples kept lifted to the first layer with LoRA.", queue.lifted)


def _savings_metrics(state: RunState) -> Iterator[Metric]:
    saved = state.savings
    passes = {"forward": saved.forward_flops, "backward": saved.backward_flops}
    yield _by(
        "device_saved_flops", "Floating-point operations spared the devices, by rule.", "pass", passes, grows=True
    )
    yield _counter("device_spent_flops", "Floating-point operations the devices did, by rule.", saved.spent_flops)
    yield _counter("device_saved_upload_bytes", "Uploads that were not repeated.", saved.upload_bytes)


def _device_metrics(devices: Mapping[str, Sequence[DeviceState]]) -> Iterator[Metric]:
    counters = {
        "received_bytes": ("Bytes of messages from a device.", lambda device: device.bytes_in),
        "sent_bytes": ("Bytes of messages to a device.", lambda device: device.bytes_out),
        "rejected_samples": ("Samples that can never be trained on.", lambda device: device.rejected),
        "repeated_samples": ("Samples that came again after a lost answer.", lambda device: device.repeats),
        "skipped_rows": ("Rows of its source that a device could not use.", lambda device: device.skipped),
        "malformed_messages": ("Messages of a device that were none.", lambda device: device.malformed),
    }
    for name, (text, value) in counters.items():
        family = CounterMetricFamily(f"splitfrozen_device_{name}", text, labels=_DEVICE)
        for label, members in devices.items():
            family.add_metric((label,), sum(map(value, members)))
        yield family
    kept = GaugeMetricFamily("splitfrozen_device_samples", "Samples of a device in the store.", labels=_DEVICE)
    heard = GaugeMetricFamily(
        "splitfrozen_device_last_seen_timestamp_seconds", "When a device was last heard, since 1970.", labels=_DEVICE
    )
    for label, members in devices.items():
        kept.add_metric((label,), sum(device.samples for device in members))
        heard.add_metric((label,), max(device.last_seen_s for device in members))
    yield from (kept, heard)


def _bounded(devices: Sequence[DeviceState]) -> dict[str, Sequence[DeviceState]]:
    """Devices by label: each its own, as far as that is bounded, and the rest together."""
    by_name = sorted(devices, key=lambda device: device.name)
    labelled: dict[str, Sequence[DeviceState]] = {device.name: [device] for device in by_name[:MAX_DEVICES]}
    return labelled if len(by_name) <= MAX_DEVICES else {**labelled, OTHERS: by_name[MAX_DEVICES:]}


def _status_counts(devices: Sequence[DeviceState]) -> dict[str, float]:
    counts = dict.fromkeys((status.value for status in DeviceStatus), 0.0)
    for device in devices:
        counts[device.status.value] += 1
    return counts


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"splitfrozen_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"splitfrozen_{name}", text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, float], *, grows: bool = False) -> Metric:
    kind = CounterMetricFamily if grows else GaugeMetricFamily
    family = kind(f"splitfrozen_{name}", text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
