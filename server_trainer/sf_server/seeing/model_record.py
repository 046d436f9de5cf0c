"""`model.json` in the run folder: how many weights each layer has. The trainer, which has the model, tells those who do not."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_server.run_folder import write_atomically
from sf_server.seeing.savings import layer_weights

MODEL_RECORD_FILE: Final = "model.json"


class ModelRecord(msgspec.Struct, frozen=True):
    """Weights in the matrices of each layer of the base model, from layer 0 on."""

    layer_weights: tuple[int, ...] = ()


def write_model_record(run: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Note a checkpoint's layers; `shapes` are those of its tensors by name."""
    record = ModelRecord(layer_weights=layer_weights(shapes))
    if read_layer_weights(run) != record.layer_weights:
        with contextlib.suppress(FileNotFoundError):  # another rank of this trainer has just written the same
            write_atomically(run / MODEL_RECORD_FILE, msgspec.json.encode(record))


def read_layer_weights(run: Path) -> tuple[int, ...]:
    """Weights of each layer; empty where nobody has noted them."""
    try:
        return msgspec.json.decode((run / MODEL_RECORD_FILE).read_bytes(), type=ModelRecord).layer_weights
    except (OSError, msgspec.DecodeError):
        return ()
