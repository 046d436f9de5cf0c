"""From a PyTorch front end to an ONNX graph whose outputs are wire-ready. The one door to `torch.onnx`."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Final

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from torch import nn
from torch.nn import functional

from sf_contract.codec import GROUP_CHANNELS, INT8_PEAK, WireCodec, scale_groups
from sf_contract.errors import ModelError
from sf_model.front import FrontModel

OPSET: Final = 18
"""Newer ones bring single Attention and RotaryEmbedding nodes, which are no faster and fail for some batches."""

MODULE_KEY: Final = "sf.module"
"""Node metadata: dotted name, inside the `FrontModel`, of the module a node comes from."""

_SCOPES_KEY: Final = "pkg.torch.onnx.name_scopes"
_EXPORTER_LOGGERS: Final = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


class Int8Embedding(nn.Module):
    """A token embedding with int8 entries and one fp32 scale per token.

    Scaling that the original module applies to its output is part of the table.
    """

    table: torch.Tensor
    scales: torch.Tensor

    def __init__(self, embedding: nn.Module, vocabulary: int) -> None:
        super().__init__()
        with torch.no_grad():
            rows = embedding(torch.arange(vocabulary)).float()
        peaks = rows.abs().amax(dim=1, keepdim=True)
        scales = torch.where(peaks > 0, peaks / INT8_PEAK, torch.ones_like(peaks))
        self.register_buffer("table", torch.round(rows / scales).to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings `[batch, tokens, hidden]` of token ids `[batch, tokens]`."""
        levels = functional.embedding(input_ids, self.table).float()
        return levels * functional.embedding(input_ids, self.scales)


class WireFront(nn.Module):
    """A front end that returns packed rows in a wire codec; the arithmetic is that of `sf_contract.codec`."""

    def __init__(self, front: FrontModel, *, hidden: int, codec: WireCodec) -> None:
        super().__init__()
        self.front = front
        self.hidden = hidden
        self.codec = codec

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, row_index: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Encoded rows of the real tokens.

        Args:
            input_ids: int64 `[batch, tokens]`.
            attention_mask: int64 `[batch, tokens]`, 1 for real tokens.
            row_index: int64 `[rows]`, positions of real tokens in the flattened batch.

        Returns:
            `rows` `[rows, hidden]` and, for int8, `scales` `[rows, groups]`.
        """
        rows = self.front(input_ids, attention_mask).reshape(-1, self.hidden).index_select(0, row_index)
        match self.codec:
            case WireCodec.FP32:
                return (rows,)
            case WireCodec.FP16:
                return (rows.to(torch.float16),)
            case WireCodec.INT8:
                return self._encode_int8(rows)

    def _encode_int8(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        groups = scale_groups(self.codec, self.hidden)
        padded = functional.pad(rows, (0, groups * GROUP_CHANNELS - self.hidden))
        grouped = padded.reshape(-1, groups, GROUP_CHANNELS)
        peaks = grouped.abs().amax(dim=2)
        scales = torch.where(peaks == 0, torch.ones_like(peaks), peaks / INT8_PEAK)
        # ONNX Runtime's maximum skips a NaN among numbers; this sum does not, and otherwise adds zero.
        scales = scales + 0 * grouped.sum(dim=2)
        levels = torch.clamp(torch.round(grouped / scales.unsqueeze(2)), -INT8_PEAK, INT8_PEAK)
        return levels.reshape(-1, groups * GROUP_CHANNELS)[:, : self.hidden].to(torch.int8), scales


def quantize_embedding(front: FrontModel, vocabulary: int) -> None:
    """Replace the token embedding in place by its int8 form; learned positions stay as they are."""
    front.base.set_input_embeddings(Int8Embedding(front.base.get_input_embeddings(), vocabulary))


def export_graph(front: FrontModel, *, hidden: int, codec: WireCodec) -> ir.Model:
    """The ONNX graph of a front end; nodes name their module in the metadata `MODULE_KEY`.

    Raises:
        ModelError: PyTorch's exporter cannot express the model.
    """
    names = ["rows", "scales"] if codec is WireCodec.INT8 else ["rows"]
    dynamic = torch.export.Dim.DYNAMIC
    try:
        with _quiet():
            program = torch.onnx.export(
                WireFront(front, hidden=hidden, codec=codec).eval(),
                _example_inputs(),
                dynamo=True,
                opset_version=OPSET,
                input_names=["input_ids", "attention_mask", "row_index"],
                output_names=names,
                dynamic_shapes=({0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, {0: dynamic}),
                verbose=False,
            )
    except Exception as problem:  # the exporter raises its own kinds, and those of every stage below it
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise ModelError(
            f"{front.base.config.model_type} cannot be expressed as an ONNX graph: {reason}",
            cure="choose a model family that SplitFrozen supports (see the README)",
        ) from problem
    if program is None:
        raise ModelError("PyTorch's exporter returned nothing", cure="use the tested version of PyTorch")
    return _cleaned(program.model)


def serialize(model: ir.Model) -> bytes:
    """Bytes of a model, the same for the same model; the model is left without metadata.

    Raises:
        ModelError: it has more than the 2 GB that one ONNX file can hold.
    """
    passes.ClearMetadataAndDocStringPass()(model)
    try:
        raw: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    except ValueError as problem:
        raise ModelError(
            f"the graph does not fit into one ONNX file of 2 GB: {problem}",
            cure="choose a smaller model, an earlier cut, or --quantize auto",
        ) from problem
    return raw


def _example_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two sequences of unlike lengths, so that neither padding nor the batch size is taken for a constant."""
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    return torch.arange(18).reshape(2, 9) % 7 + 1, mask, torch.nonzero(mask.reshape(-1)).reshape(-1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about itself away from the person at the terminal."""
    levels = {name: logging.getLogger(name).level for name in _EXPORTER_LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _cleaned(model: ir.Model) -> ir.Model:
    model.producer_name = model.producer_version = model.domain = None
    model.metadata_props.clear()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
        node.metadata_props.clear()
        # The scopes of a node: "", "front", "front.base", ..., the innermost module, the operation.
        if len(scopes) > 2:
            node.metadata_props[MODULE_KEY] = str(scopes[-2]).removeprefix("front.")
    return model
