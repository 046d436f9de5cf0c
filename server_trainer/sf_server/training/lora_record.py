"""What got LoRA in a run, told before training and recorded in the run folder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from sf_server.run_folder import write_atomically
from sf_server.training.lora import LoraPlan


class LoraRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of `lora.json`: the settings as they were resolved against the model. Layers count from 0 in the whole model.

    Attributes:
        ranks: rank of every layer that carries LoRA.
        weights: how many numbers learn.
    """

    targets: tuple[str, ...]
    ranks: dict[int, int]
    alpha: float
    dropout: float
    rslora: bool
    dora: bool
    trained_whole: tuple[str, ...]
    weights: int


def record_of(plan: LoraPlan, *, weights: int) -> LoraRecord:
    """The record of a plan."""
    return LoraRecord(
        targets=plan.targets,
        ranks={layer: plan.layer_ranks.get(layer, plan.rank) for layer in plan.layers},
        alpha=plan.alpha,
        dropout=plan.dropout,
        rslora=plan.rslora,
        dora=plan.dora,
        trained_whole=plan.new_modules,
        weights=weights,
    )


def write_lora_record(path: Path, record: LoraRecord) -> None:
    """Write `lora.json`."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(record)))


def describe_lora(record: LoraRecord) -> str:
    """One line for the person watching."""
    kind = "".join(word for word, chosen in (("rs", record.rslora), ("Do", record.dora)) if chosen)
    whole = f", and all of {', '.join(record.trained_whole)}" if record.trained_whole else ""
    return (
        f"{kind}LoRA on {', '.join(record.targets)} of {_layers(record.ranks)}, "
        f"alpha {record.alpha:g}{whole}: {record.weights:,} weights learn"
    )


def _layers(ranks: Mapping[int, int]) -> str:
    """Runs of layers with one rank, such as `layers 4-9 (rank 8), 10-29 (rank 16)`."""
    runs: list[str] = []
    for rank, group in itertools.groupby(sorted(ranks), key=ranks.__getitem__):
        layers: Sequence[int] = list(group)
        runs.append(f"{layers[0]}-{layers[-1]} (rank {rank})")
    return f"layers {', '.join(runs)}"
