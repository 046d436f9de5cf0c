"""Run folders as `sf-server train` leaves them, made without training: real bundles, and an adapter with random weights."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from sf_contract.bundle import open_bundle
from sf_contract.manifest import Task, TaskSpec, Template
from sf_export.bundle_writer import write_bundle
from sf_export.export import export_bundles
from sf_export.settings import ExportSettings
from sf_server.bundles import open_bundles
from sf_server.pieces import Pieces, open_pieces
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings
from sf_server.training.lora import attach_lora, plan_lora, save_adapter

MAX_TOKENS = 48


def export_tiny(model: Path, out: Path, **settings: object) -> list[Path]:
    """Bundles of a tiny model; several cuts lie in folders inside `out`."""
    given = {"model": str(model), "out": str(out), "max_tokens": MAX_TOKENS, "threads": 1, **settings}
    results = export_bundles(msgspec.convert(given, ExportSettings), say=lambda _: None)
    return [result.folder for result in results]


def for_classification(bundle: Path, out: Path, *, labels: tuple[str, ...]) -> Path:
    """The same front end for another task, which only its manifest tells; exporting again would take seconds."""
    opened = open_bundle(bundle)
    manifest = opened.manifest
    files = {file.name: opened.read(file.name) for file in manifest.files}
    spec = TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=labels)
    write_bundle(out, msgspec.structs.replace(manifest, task=spec), files)
    return out


def finished_run(run: Path, *, model: Path, bundles: list[Path], strength: float = 0.3) -> Pieces:
    """A run whose adapter changes what the model answers, in every layer from the deepest cut on.

    Args:
        strength: standard deviation of the LoRA matrices that training would start at zero.
    """
    settings = TrainSettings(
        bundle=tuple(map(str, bundles)), run=str(run), model=str(model), expect_devices=1, dtype="fp32", device="cpu"
    )

    RunFolder(run).create(settings, bundle_ids=[bundle.bundle_id for bundle in open_bundles(bundles)])
    pieces = open_pieces(run)
    loaded = pieces.load_model()
    back_end = pieces.back_end(loaded)
    plan = plan_lora(back_end, targets=(), rank=4, alpha=8, dropout=0.0, new_modules=loaded.new_modules)
    task = pieces.bundle.manifest.task.task
    attach_lora(back_end, plan, task=task, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in back_end.model.named_parameters():
            if ".lora_B" in name or ("modules_to_save" in name and task is Task.TEXT_CLASSIFICATION):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * strength)
    save_adapter(back_end, RunFolder(run).adapter_path, base_name=str(model), revision=None, card="made for a test")
    return pieces
