"""The fp32 graph of a front end, proven to compute what PyTorch computes before anything is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
import torch

from sf_contract.codec import FloatRows, WireCodec, decode_rows, relative_row_errors
from sf_contract.errors import BundleError, ModelError
from sf_contract.front_end import FrontEnd
from sf_contract.int4 import Int4Parameters
from sf_export.graph import OPSETS, export_graph, serialize
from sf_model.front import FrontModel

_LENGTHS: Final = (19, 7)
_MAX_CODEC_ERROR: Final[dict[WireCodec, float]] = {
    WireCodec.FP32: 1e-3,
    WireCodec.FP16: 2e-3,
    WireCodec.INT8: 0.05,
    WireCodec.INT4: 0.3,
}
"""Mean relative error that rounding the rows may cause; int4 is calibrated on text, and random tokens are none."""
_MAX_PADDING_ERROR: Final = 0.02
"""Sequences alone and in a batch take other kernels, so a level of the row codec may differ; wrong padding differs by more."""


def checked_graph(front: FrontModel, *, hidden: int, codec: WireCodec, int4: Int4Parameters | None) -> ir.Model:
    """The graph in the newest opset in which ONNX Runtime computes what PyTorch does, padded batches included.

    Raises:
        ModelError: there is none.
    """
    problem: Exception | None = None
    for opset in OPSETS:
        try:
            model = export_graph(front, hidden=hidden, codec=codec, int4=int4, opset=opset)
            _check(FrontEnd(serialize(model.clone()), codec=codec, int4=int4), front, codec)
        except (ModelError, BundleError, _WrongGraph) as found:
            problem = found
        else:
            return model
    raise ModelError(
        f"{front.base.config.model_type} cannot be expressed as an ONNX graph that computes the same: {problem}",
        cure="choose a model family that sf-export families lists",
    ) from problem


class _WrongGraph(Exception):
    """A graph that loads, and computes something else."""


def _check(front_end: FrontEnd, front: FrontModel, codec: WireCodec) -> None:
    vocabulary = _vocabulary(front)
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in _LENGTHS]
    alone = [_computed(front_end, [sequence])[0] for sequence in sequences]
    together = _computed(front_end, sequences)
    for sequence, single, batched in zip(sequences, alone, together, strict=True):
        wanted = front(torch.tensor([sequence]), torch.ones(1, len(sequence), dtype=torch.int64))[0].detach().numpy()
        _compare(single, wanted, _MAX_CODEC_ERROR[codec], "PyTorch")
        _compare(batched, single, max(_MAX_PADDING_ERROR, 1e-3), "the same sequence alone")


def _computed(front_end: FrontEnd, sequences: Sequence[Sequence[int]]) -> list[FloatRows]:
    try:
        return [decode_rows(rows) for rows in front_end.run(sequences)]
    except Exception as problem:  # ONNX Runtime's own error types derive from bare Exception
        raise _WrongGraph(f"ONNX Runtime cannot run it: {problem}") from problem


def _compare(found: FloatRows, wanted: FloatRows, allowed: float, other: str) -> None:
    error = float(relative_row_errors(found, np.asarray(wanted, dtype=np.float32)).mean())
    if not error <= allowed:
        raise _WrongGraph(f"its rows differ from {other} by {error:.2%}")


def _vocabulary(front: FrontModel) -> int:
    """Rows of the token embedding, untouched (`weight`) or quantized (`table`)."""
    embedding = front.base.get_input_embeddings()
    table = getattr(embedding, "weight", None)
    if table is None:
        table = embedding.get_buffer("table")
    return int(table.shape[0])
