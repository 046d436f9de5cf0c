"""Checkpoints: everything training needs to go on exactly where it stopped, written whole or not at all.

A checkpoint is a folder `step-0000000123` with `state.json` and `tensors.safetensors`; no pickle. The newest two are kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sf_contract.errors import StoreError
from sf_server.run_folder import sync_folder
from sf_server.training.schedule import Position

KEPT: Final = 2
_PREFIX: Final = "step-"
_STATE_FILE: Final = "state.json"
_TENSORS_FILE: Final = "tensors.safetensors"
_PARAMETER: Final = "parameter/"
_OPTIMIZER: Final = "optimizer/"
_RANDOM: Final = "random"
_TRAINED: Final = "trained"


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where training stands, in plain numbers.

    Attributes:
        step: optimizer steps done.
        position: epoch, window and batch.
        stream_end: last `seq` of the training set; 0 until the first epoch has seen all of it.
        samples: training samples in the set, counted when the first epoch ended.
        later_done: samples done in epochs after the first.
        skipped_steps: steps left out because a gradient was not finite.
        tokens: rows trained on, over all epochs.
    """

    step: int = 0
    position: Position = Position()
    stream_end: int = 0
    samples: int = 0
    later_done: int = 0
    skipped_steps: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A checkpoint in memory.

    Attributes:
        progress: the numbers.
        parameters: trained weights by name.
        optimizer: per parameter name, the optimizer's tensors by their name.
        random: PyTorch's random state, uint8.
        trained: int64 `[n, 2]`: `seq` of every sample trained on, and how often.
    """

    progress: Progress
    parameters: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Mapping[str, torch.Tensor]]
    random: torch.Tensor
    trained: torch.Tensor


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, make it durable, then drop older ones."""
        self._folder.mkdir(parents=True, exist_ok=True)
        final = self._folder / f"{_PREFIX}{snapshot.progress.step:010d}"
        scratch = self._folder / f".{final.name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        save_file(_to_tensors(snapshot), scratch / _TENSORS_FILE)
        (scratch / _STATE_FILE).write_bytes(msgspec.json.encode(snapshot.progress))
        for file in scratch.iterdir():
            _sync_file(file)
        if final.exists():
            shutil.rmtree(final)
        scratch.replace(final)
        sync_folder(self._folder)
        for old in self._newest_first()[KEPT:]:
            shutil.rmtree(old)
        return final

    def load_newest(self) -> Snapshot | None:
        """The newest checkpoint that can be read; None when there is none.

        Raises:
            StoreError: there are checkpoints, and none can be read.
        """
        problems: list[str] = []
        for folder in self._newest_first():
            try:
                return _read(folder)
            except (OSError, SafetensorError, msgspec.DecodeError, KeyError) as problem:
                problems.append(f"{folder.name}: {problem}")
        if problems:
            raise StoreError(
                f"no checkpoint in {self._folder} can be read ({'; '.join(problems)})",
                cure="remove that folder to train again from the samples in the store",
            )
        return None

    def _newest_first(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return sorted((p for p in self._folder.iterdir() if p.name.startswith(_PREFIX)), reverse=True)


def _to_tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    tensors = {_PARAMETER + name: tensor for name, tensor in snapshot.parameters.items()}
    for name, state in snapshot.optimizer.items():
        tensors |= {f"{_OPTIMIZER}{key}/{name}": tensor for key, tensor in state.items()}
    tensors[_RANDOM] = snapshot.random
    tensors[_TRAINED] = snapshot.trained
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read(folder: Path) -> Snapshot:
    tensors = load_file(folder / _TENSORS_FILE)
    progress = msgspec.json.decode((folder / _STATE_FILE).read_bytes(), type=Progress)
    optimizer: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            key, _, parameter = name.removeprefix(_OPTIMIZER).partition("/")
            optimizer.setdefault(parameter, {})[key] = tensor
    return Snapshot(
        progress=progress,
        parameters={n.removeprefix(_PARAMETER): t for n, t in tensors.items() if n.startswith(_PARAMETER)},
        optimizer=optimizer,
        random=tensors[_RANDOM],
        trained=tensors[_TRAINED],
    )


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
