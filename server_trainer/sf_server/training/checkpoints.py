"""Checkpoints: everything training needs to go on exactly where it stopped, written whole or not at all.

A checkpoint is a folder `step-0000000123` (or `step-0000000123-01`, when it was saved again at the same step) with
`state.json` and `tensors.safetensors`; no pickle. The newest ones are kept, and apart from them the one that did best on
the samples that devices held out, `best-0000000123`, with `score.json`.

The learning rate is a function of the progress, and nothing draws from NumPy's or Python's global generators, so neither has
a state to keep.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sf_contract.errors import DiskFull, StoreError
from sf_server.run_folder import sync_folder
from sf_server.training.room import is_no_room
from sf_server.training.schedule import Position

KEPT: Final = 3
_NEWEST: Final = re.compile(r"step-(\d{10})(?:-(\d\d+))?")
_BEST: Final = re.compile(r"best-(\d{10})")
_SCRATCH: Final = "."
_STATE_FILE: Final = "state.json"
_SCORE_FILE: Final = "score.json"
_TENSORS_FILE: Final = "tensors.safetensors"
_PARAMETER: Final = "parameter/"
_OPTIMIZER: Final = "optimizer/"
_RANDOM: Final = "random/"
_MARKS: Final = "marks"


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where training stands, in plain numbers.

    Attributes:
        step: optimizer steps done.
        position: epoch, window and batch.
        stream_end: last `seq` of the training set; 0 until the first epoch has seen all of it.
        samples: training samples in the set, counted when the first epoch ended.
        samples_trained: samples done, each as often as it was.
        later_done: the same, without the first epoch.
        validated: epochs after which the held-out samples were scored, or need not be.
        skipped_steps: steps left out because a gradient was not finite.
        tokens: rows trained on, over all epochs.
    """

    step: int = 0
    position: Position = Position()
    stream_end: int = 0
    samples: int = 0
    samples_trained: int = 0
    later_done: int = 0
    validated: int = 0
    skipped_steps: int = 0
    tokens: int = 0


class BestScore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the best checkpoint reached on the held-out samples: loss in nats per target, accuracy from 0 to 1."""

    epoch: int
    step: int
    samples: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A checkpoint in memory.

    Attributes:
        progress: the numbers.
        parameters: trained weights by name.
        optimizer: per parameter name, the optimizer's tensors by their name.
        random: PyTorch's random states by kind of device, uint8.
        marks: samples of this epoch that are done, as `Marks.bits` gives them, uint8.
    """

    progress: Progress
    parameters: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Mapping[str, torch.Tensor]]
    random: Mapping[str, torch.Tensor]
    marks: torch.Tensor


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: made when the first one is saved.
        keep: those of the newest so many steps stay.
    """

    def __init__(self, folder: Path, *, keep: int = KEPT) -> None:
        self._folder = folder
        self._keep = keep

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, make it durable, then drop older ones.

        Raises:
            DiskFull: there is no room for it; those that are there stay.
        """
        final = self._free_name(snapshot.progress.step)
        self._write(snapshot, final, score=None)
        kept: set[int] = set()
        for folder in self._newest_first():
            step, _ = _number_of(folder)
            if step in kept or len(kept) == self._keep:
                shutil.rmtree(folder)
            kept.add(step)
        return final

    def save_best(self, snapshot: Snapshot, score: BestScore) -> None:
        """Keep a checkpoint as the best one, instead of the one that was.

        Raises:
            DiskFull: there is no room for it; the former one stays.
        """
        final = self._folder / f"best-{score.step:010d}"
        if final.exists():
            return
        self._write(snapshot, final, score=score)
        for old in self._named(_BEST):
            if old != final:
                shutil.rmtree(old)

    def best(self) -> BestScore | None:
        """Score of the best checkpoint; None when there is none."""
        found = self._best_folder()
        return None if found is None else found[1]

    def load_best(self) -> Snapshot | None:
        """The best checkpoint; None when there is none that can be read."""
        found = self._best_folder()
        return None if found is None else _read_whole([found[0]], [])

    def load_newest(self) -> Snapshot | None:
        """The newest checkpoint that can be read; None when there is none.

        Raises:
            StoreError: there are checkpoints, and none can be read.
        """
        problems: list[str] = []
        snapshot = _read_whole(self._newest_first(), problems)
        if snapshot is None and problems:
            raise StoreError(
                f"no checkpoint in {self._folder} can be read ({'; '.join(problems)})",
                cure="remove that folder to train again from the samples in the store",
            )
        return snapshot

    def steps(self) -> list[int]:
        """Steps that there are checkpoints of, besides the best one."""
        return sorted({_number_of(folder)[0] for folder in self._newest_first()})

    def drop_after(self, step: int) -> None:
        """Remove those of later steps, so that training goes on from this one."""
        for folder in self._newest_first():
            if _number_of(folder)[0] > step:
                shutil.rmtree(folder)

    def _write(self, snapshot: Snapshot, final: Path, *, score: BestScore | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_scratch()
        scratch = self._folder / f"{_SCRATCH}{final.name}"
        try:
            _fill(scratch, snapshot, score)
            scratch.replace(final)
            sync_folder(self._folder)
        except (OSError, SafetensorError) as problem:
            shutil.rmtree(scratch, ignore_errors=True)
            if not is_no_room(problem):
                raise
            raise DiskFull(
                f"there is no room for a checkpoint in {self._folder}", cure="free some space, or raise the quota"
            ) from problem

    def _remove_scratch(self) -> None:
        """What a killed process was writing."""
        for entry in self._folder.iterdir():
            if entry.name.startswith(_SCRATCH):
                shutil.rmtree(entry, ignore_errors=True)

    def _free_name(self, step: int) -> Path:
        """A checkpoint is never written over: a process that is killed in between would leave none."""
        same = [again for number, again in map(_number_of, self._newest_first()) if number == step]
        again = f"-{max(same) + 1:02d}" if same else ""
        return self._folder / f"step-{step:010d}{again}"

    def _newest_first(self) -> list[Path]:
        return sorted(self._named(_NEWEST), key=_number_of, reverse=True)

    def _named(self, pattern: re.Pattern[str]) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if pattern.fullmatch(path.name)]

    def _best_folder(self) -> tuple[Path, BestScore] | None:
        """After a crash there may be two: the better one is the newer one."""
        for folder in sorted(self._named(_BEST), reverse=True):
            try:
                return folder, msgspec.json.decode((folder / _SCORE_FILE).read_bytes(), type=BestScore)
            except (OSError, msgspec.DecodeError):
                continue
        return None


def _number_of(folder: Path) -> tuple[int, int]:
    """Step, and how often it was saved again at this step."""
    _, step, *again = folder.name.split("-")
    return int(step), int(again[0]) if again else 0


def _fill(scratch: Path, snapshot: Snapshot, score: BestScore | None) -> None:
    scratch.mkdir()
    save_file(_to_tensors(snapshot), scratch / _TENSORS_FILE)
    (scratch / _STATE_FILE).write_bytes(msgspec.json.encode(snapshot.progress))
    if score is not None:
        (scratch / _SCORE_FILE).write_bytes(msgspec.json.encode(score))
    for file in scratch.iterdir():
        _sync_file(file)
    sync_folder(scratch)


def _to_tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    tensors = {_PARAMETER + name: tensor for name, tensor in snapshot.parameters.items()}
    for name, state in snapshot.optimizer.items():
        tensors |= {f"{_OPTIMIZER}{key}/{name}": tensor for key, tensor in state.items()}
    tensors |= {_RANDOM + kind: state for kind, state in snapshot.random.items()}
    tensors[_MARKS] = snapshot.marks
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _read_whole(folders: Sequence[Path], problems: list[str]) -> Snapshot | None:
    """The first of these that can be read; what is wrong with the others is added to `problems`."""
    for folder in folders:
        try:
            return _read(folder)
        except (OSError, SafetensorError, msgspec.DecodeError, KeyError) as problem:
            problems.append(f"{folder.name}: {problem}")
    return None


def _read(folder: Path) -> Snapshot:
    tensors = load_file(folder / _TENSORS_FILE)
    progress = msgspec.json.decode((folder / _STATE_FILE).read_bytes(), type=Progress)
    optimizer: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _under(_OPTIMIZER, tensors).items():
        key, _, parameter = name.partition("/")
        optimizer.setdefault(parameter, {})[key] = tensor
    return Snapshot(
        progress=progress,
        parameters=_under(_PARAMETER, tensors),
        optimizer=optimizer,
        random=_under(_RANDOM, tensors),
        marks=tensors[_MARKS],
    )


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sync_file(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
