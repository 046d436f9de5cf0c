"""Opening the pieces of a run: bundles, base model, back end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sf_contract.bundle import Bundle
from sf_contract.errors import UsageError
from sf_contract.int4 import Int4Parameters
from sf_contract.manifest import BaseModel
from sf_model.back import BackEnd
from sf_model.checkpoint import Checkpoint, LoadedModel, check_same_base, load_model, open_checkpoint
from sf_server.bundles import first_lora_layer, int4_by_bundle, open_run_bundles
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a run is made of.

    Attributes:
        folder: the run folder.
        settings: the run's settings.
        bundles: the verified bundles its devices use, shallowest cut first.
        checkpoint: the base model on this machine, checked against the bundles.
        device: where to compute.
        dtype: dtype of the back end's frozen weights.
    """

    folder: RunFolder
    settings: TrainSettings
    bundles: tuple[Bundle, ...]
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype

    @property
    def bundle(self) -> Bundle:
        """The bundle with the deepest cut: the one to use where one has to be chosen, for text that comes to the server."""
        return self.bundles[-1]

    @property
    def first_layer(self) -> int:
        """The lowest layer with LoRA; training enters the model there."""
        return first_lora_layer(self.settings, self.bundles)

    def int4_parameters(self) -> dict[str, Int4Parameters]:
        """What the store needs to decode samples of bundles whose wire codec is int4."""
        return int4_by_bundle(self.bundles)

    def load_model(self, dtype: torch.dtype | None = None) -> LoadedModel:
        """The whole model for the bundle's task."""
        spec = self.bundle.manifest.task
        return load_model(
            self.checkpoint,
            task=spec.task,
            dtype=dtype or self.dtype,
            labels=spec.labels,
            seed=self.settings.seed,
        )

    def back_end(self, model: LoadedModel) -> BackEnd:
        """The model from the first layer with LoRA on, on the compute device; the model is used up."""
        back_end = BackEnd(model.model, self.first_layer)
        back_end.to(self.device)
        return back_end


def open_pieces(run: Path, *, model: str | None = None, say: Say = lambda _: None) -> Pieces:
    """Open a run.

    Args:
        run: the run folder.
        model: base model; None for the one the run was trained with, or the one the bundle names.

    Raises:
        UsageError: there is no run, or the base model is a local one and `model` is not given.
        BundleError, ModelError, MismatchError: as opening and comparing them finds.
    """
    folder = RunFolder(run)
    settings = folder.settings()
    bundles = open_run_bundles(settings, folder.record().bundle_ids)
    base = bundles[-1].manifest.base_model
    source = model or settings.model or _hub_name(base)
    revision = base.revision if source == base.name else None
    checkpoint = open_checkpoint(source, revision=revision, say=say)
    check_same_base(checkpoint, base)
    device = choose_device(settings.device)
    return Pieces(
        folder=folder,
        settings=settings,
        bundles=bundles,
        checkpoint=checkpoint,
        device=device,
        dtype=choose_dtype(settings.dtype, device),
    )


def choose_device(wanted: str) -> torch.device:
    """The compute device for a `--device` setting.

    Raises:
        UsageError: cuda was asked for, and there is none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UsageError(
            "--device cuda: PyTorch finds no CUDA device", cure="use --device cpu, or install a CUDA build"
        )
    return torch.device("cuda" if wanted != "cpu" and available else "cpu")


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Dtype of frozen weights for a `--dtype` setting: `auto` is bf16 where the hardware multiplies it, else fp32."""
    if wanted != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def _hub_name(base: BaseModel) -> str:
    if base.revision is None:
        raise UsageError(
            f"the bundle was made from the local model {base.name}", cure="say where it is on this machine with --model"
        )
    return base.name
