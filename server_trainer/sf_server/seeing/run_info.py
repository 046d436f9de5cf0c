"""What a run was asked for: from its settings, its bundles' manifests and what the trainer noted about the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sf_contract.bundle import MANIFEST_FILE
from sf_contract.errors import BundleError
from sf_contract.manifest import Manifest, decode_manifest
from sf_server.run_folder import RunRecord
from sf_server.seeing.model_record import read_layer_weights
from sf_server.seeing.savings import forward_flops
from sf_server.seeing.state import BundleState, RunInfo


def run_info(folder: Path, record: RunRecord, *, address: str | None) -> RunInfo:
    """What a run was asked for; a bundle whose folder is gone is left out."""
    settings = record.settings
    manifests = [manifest for manifest in map(_manifest, settings.bundle_paths) if manifest is not None]
    weights = read_layer_weights(folder)
    first = manifests[0] if manifests else None
    return RunInfo(
        folder=str(folder),
        base_model="" if first is None else first.base_model.name,
        task="" if first is None else first.task.task.value,
        labels=() if first is None else first.task.labels,
        epochs=settings.epochs,
        expect_devices=settings.expect_devices,
        expect_samples=settings.expect_samples,
        window_samples=settings.window_samples,
        learning_rate=settings.learning_rate,
        address=address,
        bundles=tuple(_bundle_state(manifest, weights) for manifest in manifests),
    )


def _bundle_state(manifest: Manifest, weights: Sequence[int]) -> BundleState:
    geometry = manifest.geometry
    flops, known = forward_flops(cut=geometry.split_layer, hidden=geometry.hidden, weights=weights)
    return BundleState(
        bundle_id=manifest.bundle_id,
        cut=geometry.split_layer,
        layers=geometry.layers,
        hidden=geometry.hidden,
        wire_codec=manifest.wire_codec.value,
        forward_flops_per_token=flops,
        layer_weights_known=known,
    )


def _manifest(folder: Path) -> Manifest | None:
    path = folder / MANIFEST_FILE
    try:
        return decode_manifest(path.read_bytes(), where=str(path))
    except (OSError, BundleError):
        return None
