"""Results of the accuracy comparison on disk: one JSON file per finished cell (an arm and a seed)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sf_contract.errors import MismatchError, StoreError
from sf_server.run_folder import RunFolder, write_atomically

FP32: Final = "fp32"
"""Name of the arm that trains on the base model's own rows, computed by PyTorch in fp32 and not rounded for the wire."""

Score = Annotated[float, Meta(ge=0)]


class CellKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides a cell's result.

    Attributes:
        rows: `fp32`, or the id of the bundle that computes the rows.
        base_weights_sha256: the base model.
        split_layer: the cut.
        inputs_sha256: digest of all token ids and labels, of training and validation.
        training: settings of the training.
    """

    rows: str
    base_weights_sha256: str
    split_layer: int
    inputs_sha256: str
    training: dict[str, int | float | str]


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Validation samples in the file's order, right or wrong, and the mean cross-entropy in nats."""

    hits: Annotated[tuple[bool, ...], Meta(min_length=1)]
    loss: Score

    @property
    def accuracy(self) -> float:
        """Part that is right."""
        return sum(self.hits) / len(self.hits)


class RowError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Relative error of an arm's validation rows, after the wire, against the fp32 rows: mean and 99th percentile."""

    mean: Score
    p99: Score


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Result of one arm and seed.

    Attributes:
        arm: its name.
        seed: of phrases, order and new weights.
        wire: encoding of the rows.
        bytes_per_token: of the encoded rows, scales included, on the validation set.
        row_error: None for the fp32 arm.
        own: judged with the arm's own rows, as a device would send them.
        whole: judged with fp32 rows, as a user of the published adapter computes it with the untouched model; None where that
            was not asked for.
        steps, tokens: of the training.
        cpu_s: processor seconds of the process that finished the cell.
    """

    key: CellKey
    arm: str
    seed: int
    wire: str
    bytes_per_token: Score
    row_error: RowError | None
    own: Evaluation
    whole: Evaluation | None
    steps: int
    tokens: int
    cpu_s: Score


def cell_path(work: Path, arm: str, seed: int) -> Path:
    """File of a finished cell."""
    return work / f"{arm}-seed{seed}.json"


def read_cell(path: Path, key: CellKey) -> Cell | None:
    """A finished cell; None when there is none.

    Raises:
        MismatchError: it was computed from other inputs or settings.
        StoreError: the file is damaged.
    """
    try:
        cell = msgspec.json.decode(path.read_bytes(), type=Cell)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise StoreError(f"{path} is not a result: {problem}", cure="delete it; it is computed again") from problem
    _check_same(path, found=cell.key, wanted=key)
    return cell


def claim(folder: RunFolder, key: CellKey) -> None:
    """Write down what the half-finished cell belongs to, so that it is never finished as another one.

    Raises:
        MismatchError: it belongs to other inputs or settings.
    """
    path = folder.path / "key.json"
    if path.exists():
        _check_same(folder.path, found=msgspec.json.decode(path.read_bytes(), type=CellKey), wanted=key)
    else:
        write_atomically(path, msgspec.json.encode(key))


def _check_same(where: Path, *, found: CellKey, wanted: CellKey) -> None:
    differing = [name for name in CellKey.__struct_fields__ if getattr(found, name) != getattr(wanted, name)]
    if differing:
        raise MismatchError(
            f"{where} was computed with other {', '.join(differing)}",
            cure="give another --work folder, or the options it was computed with",
        )
