"""A bundle whose rows are wide enough to make a link work: a lookup and a product, made without PyTorch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sf_contract.bundle import Bundle, open_bundle
from sf_export.bundle_writer import write_bundle
from support.tiny_bundle import (
    HIDDEN,
    TOKEN_IDS,
    WORDS,
    constant,
    embedding_table,
    front_end_model,
    node,
    tiny_files,
    tiny_manifest,
)

WIDE: Final = 64
LABELS: Final = ("lights", "music")
MOST_WORDS: Final = 16
UNUSABLE_EVERY: Final = 13
"""Every so many rows one has a label that the bundle does not know, so that ordinals are not line numbers."""


def write_wide_bundle(folder: Path) -> Bundle:
    """A whole bundle with rows of `WIDE` float32 numbers."""
    weight = np.random.default_rng(5).normal(size=(HIDDEN, WIDE)).astype(np.float32)
    graph = front_end_model(
        before_rows=[node("MatMul", ["packed", "widen"], "wide")],
        rows_from="wide",
        rows_shape=("rows", WIDE),
        weights=[constant("widen", weight, np.float32)],
    )
    rows = embedding_table()[[i for ids in TOKEN_IDS for i in ids]] @ weight
    files = tiny_files(graph=graph.SerializeToString(), vectors=rows.astype("<f4").tobytes())
    manifest = tiny_manifest(files, name="wide")
    geometry = msgspec.structs.replace(manifest.geometry, hidden=WIDE)
    write_bundle(folder, msgspec.structs.replace(manifest, geometry=geometry), files)
    return open_bundle(folder)


def row(seed: int, device: int, number: int) -> dict[str, str]:
    """Row `number` (from 0) of a device's data; the same whenever it is asked for."""
    chance = random.Random(f"{seed} {device} {number}")
    words = chance.choices(WORDS[1:], k=chance.randint(3, MOST_WORDS))
    label = chance.choice(LABELS) if number % UNUSABLE_EVERY else "unknown"
    return {"text": " ".join(words), "label": label}


def is_usable(number: int) -> bool:
    """True when a row gives a sample."""
    return number % UNUSABLE_EVERY != 0
