"""Labelled sentences: reading a file of them, keeping some aside, dealing them out to devices, writing them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_contract.errors import DataError, UsageError
from sf_contract.records import BadRow, Row, read_records

KEPT_ASIDE_EVERY: Final = 10
"""Of a user's own file, every tenth row of each label is kept for validation."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A sentence and the name of its class."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """The usable rows of a file, and how many were not."""

    rows: tuple[LabelledText, ...]
    skipped_rows: int


def read_labelled(path: Path) -> LabelledFile:
    """The rows of a JSON Lines or CSV file with the columns `text` and `label`.

    Raises:
        DataError: the file cannot be read, or has fewer than two labels.
    """
    read = [_usable(row) for row in read_records(path)]
    rows = tuple(row for row in read if row is not None)
    if len(labels_of(rows)) < 2:
        raise DataError(
            f"{path} has {len(rows)} usable rows with {len(labels_of(rows))} labels; at least two labels are needed",
            cure='give one JSON object per line, such as {"text": "call Tom", "label": "make_call"}',
        )
    return LabelledFile(rows=rows, skipped_rows=len(read) - len(rows))


def labels_of(rows: Iterable[LabelledText]) -> list[str]:
    """The labels in alphabetical order."""
    return sorted({row.label for row in rows})


def labels_flag(rows: Iterable[LabelledText]) -> str:
    """The labels as the commands take them: `a,b,c`.

    Raises:
        UsageError: a label holds a comma.
    """
    labels = labels_of(rows)
    for label in labels:
        if "," in label:
            raise UsageError(f"the label {label!r} holds a comma", cure="rename it; labels are listed as a,b,c")
    return ",".join(labels)


def keep_aside(rows: Sequence[LabelledText]) -> tuple[list[LabelledText], list[LabelledText]]:
    """Rows to train on, and every tenth row of each label for validation (at least one where a label has two rows)."""
    train: list[LabelledText] = []
    validation: list[LabelledText] = []
    seen: dict[str, int] = {}
    for row in rows:
        seen[row.label] = seen.get(row.label, 0) + 1
        (validation if seen[row.label] % KEPT_ASIDE_EVERY == 2 else train).append(row)
    return train, validation


def split_by_label(rows: Sequence[LabelledText], devices: int) -> list[list[LabelledText]]:
    """The rows of each device: as few labels per device as possible.

    Labels are dealt round robin in alphabetical order. With fewer labels than devices, several devices hold the same
    label and its rows are dealt among them; no row is ever on two devices.
    """
    shares: list[list[LabelledText]] = [[] for _ in range(devices)]
    labels = labels_of(rows)
    holders = {label: _holders(index, labels=len(labels), devices=devices) for index, label in enumerate(labels)}
    dealt = dict.fromkeys(labels, 0)
    for row in rows:
        candidates = holders[row.label]
        shares[candidates[dealt[row.label] % len(candidates)]].append(row)
        dealt[row.label] += 1
    return shares


def write_labelled(path: Path, rows: Iterable[LabelledText]) -> None:
    """Write JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _holders(index: int, *, labels: int, devices: int) -> list[int]:
    if labels >= devices:
        return [index % devices]
    return [device for device in range(devices) if device % labels == index]


def _usable(row: Row | BadRow) -> LabelledText | None:
    if isinstance(row, BadRow):
        return None
    text, label = row.record.get("text", "").strip(), row.record.get("label", "").strip()
    return LabelledText(text, label) if text and label else None
