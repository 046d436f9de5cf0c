"""Results of the accuracy comparison: a cell is an arm and a seed."""

from __future__ import annotations

from typing import Final

import msgspec

from sf_bench.quality.results import Evaluation, Score

FP32: Final = "fp32"
"""Name of the arm that trains on the base model's own rows, computed by PyTorch in fp32 and not rounded for the wire."""


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
