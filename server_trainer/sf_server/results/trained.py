"""The trained model of a run, entered at any of its cuts."""

from __future__ import annotations

import torch

from sf_contract.bundle import Bundle
from sf_model.back import BackEnd
from sf_model.taking_apart import sharing_weights
from sf_server.pieces import Pieces
from sf_server.training.lora import load_trained


class TrainedModel:
    """Base model and published adapter; its back ends share their weights, however many cuts there are.

    Args:
        dtype: dtype of the base weights; None: as the run's settings say.

    Raises:
        MismatchError: the run has published no adapter yet, or it belongs to another base model.
    """

    def __init__(self, pieces: Pieces, *, dtype: torch.dtype | None = None) -> None:
        self._model = load_trained(pieces.load_model(dtype).model, pieces.folder.adapter_path)
        self._model.to(pieces.device)  # type: ignore[arg-type]  # the library annotates its own subclass
        self._back_ends: dict[int, BackEnd] = {}

    def back_end(self, bundle: Bundle) -> BackEnd:
        """The layers above a bundle's cut."""
        cut = bundle.manifest.geometry.split_layer
        if cut not in self._back_ends:
            back_end = BackEnd(sharing_weights(self._model), cut)
            back_end.requires_grad_(False)
            back_end.train(False)
            self._back_ends[cut] = back_end
        return self._back_ends[cut]
