"""From the commands' reports to the summary."""

from __future__ import annotations

from collections.abc import Sequence

from commands import Plan
from labelled import LabelledText
from monitor import WatchedDevice
from reports import EdgeReport, EvalReport, Metrics, StoredDevice, report
from summary import Accuracy, BundleResult, DeviceResult, ServerResult, majority_share

from sf_contract.bundle import open_bundle


def accuracy(evaluation: str, validation: Sequence[LabelledText], *, templates_unseen: bool) -> Accuracy:
    """Accuracy from the report of `sf-server eval`."""
    measured = report(evaluation, EvalReport, of="sf-server eval")
    return Accuracy(
        rows=len(validation),
        templates_unseen=templates_unseen,
        bundle=measured.bundle.accuracy,
        fp32=measured.fp32.accuracy,
        majority_class=majority_share(validation),
    )


def device_result(device: WatchedDevice, *, rows: int) -> DeviceResult:
    """One device from its own report."""
    edge = report(device.child.stdout.read_bytes(), EdgeReport, of=f"sf-edge run ({device.name})")
    return DeviceResult(
        name=device.name,
        labels=device.labels,
        rows=rows,
        forward_passes=edge.forward_passes,
        uploads=edge.uploaded_samples,
        repeated_uploads=edge.resent_samples,
        bytes_up=edge.bytes_up,
        bytes_down=edge.bytes_down,
        cpu_s=edge.cpu_seconds,
    )


def bundle_result(plan: Plan) -> BundleResult:
    """Size and measured error from the bundle's manifest."""
    manifest = open_bundle(plan.out.bundle).manifest
    error = manifest.quantization.error
    return BundleResult(nbytes=sum(file.nbytes for file in manifest.files), mean_error=error.mean, p99_error=error.p99)


def server_result(devices: Sequence[StoredDevice], metrics: Metrics, *, epochs: int) -> ServerResult:
    """The server's side of the accounts, from its store and its trainer."""
    return ServerResult(
        epochs=epochs,
        samples_stored=_sum([device.samples for device in devices]),
        repeats=_sum([device.repeats for device in devices]),
        samples_held_out=metrics.validation.samples or 0,
        samples_trained=metrics.step.samples_trained,
    )


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if values and len(known) == len(values) else None
