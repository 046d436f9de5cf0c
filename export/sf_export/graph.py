"""From a PyTorch front end to an ONNX graph whose outputs are wire-ready. The one door to `torch.onnx`."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from sf_contract.codec import WireCodec, has_scales
from sf_contract.errors import ModelError
from sf_contract.int4 import Int4Parameters
from sf_export.wire import WireFront
from sf_model.front import FrontModel

OPSETS: Final = (23, 18)
"""In order of preference. 23 has single nodes for attention, RMS norm and rotary positions, which leave half as much work
beside the matrix products as 18 does; a model that cannot be expressed or computed with it takes 18."""

MODULE_KEY: Final = "sf.module"
"""Node metadata: dotted name, inside the `FrontModel`, of the module a node comes from."""

_SCOPES_KEY: Final = "pkg.torch.onnx.name_scopes"
_SLICE: Final = re.compile(r"\.slice\([^)]*\)")
"""What a module's name holds where the model runs through a slice of its list of layers."""

_EXPORTER_LOGGERS: Final = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


def export_graph(
    front: FrontModel, *, hidden: int, codec: WireCodec, int4: Int4Parameters | None = None, opset: int = OPSETS[0]
) -> ir.Model:
    """The ONNX graph of a front end; nodes name their module in the metadata `MODULE_KEY`.

    `int4` are the parameters of that codec, None for others.

    Raises:
        ModelError: PyTorch's exporter cannot express the model.
    """
    names = ["rows", "scales"] if has_scales(codec) else ["rows"]
    dynamic = torch.export.Dim.DYNAMIC
    try:
        with _quiet():
            program = torch.onnx.export(
                WireFront(front, hidden=hidden, codec=codec, int4=int4).eval(),
                _example_inputs(),
                dynamo=True,
                opset_version=opset,
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
    """Bytes of a model, the same for the same model; the model is used up, clone it to keep it.

    Raises:
        ModelError: it has more than the 2 GB that one ONNX file can hold.
    """
    passes.ClearMetadataAndDocStringPass()(model)
    try:
        proto = ir.to_proto(model)
        # A graph is full of reference cycles, so its weights would stay until the garbage collector comes round.
        for value in model.graph.initializers.values():
            value.const_value = None
        raw: bytes = proto.SerializeToString(deterministic=True)
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
            node.metadata_props[MODULE_KEY] = _SLICE.sub("", str(scopes[-2]).removeprefix("front."))
    _give_rotary_caches_a_batch(model)
    passes.CommonSubexpressionEliminationPass()(model)
    return model


def _give_rotary_caches_a_batch(model: ir.Model) -> None:
    """Expand the sines and cosines of `RotaryEmbedding` to the batch.

    Models compute them once for all sequences, `[1, tokens, size]`; ONNX allows `[batch, tokens, size]` only.
    """
    for node in list(model.graph):
        if node.op_type == "RotaryEmbedding" and len(node.inputs) == 3:
            for index in (1, 2):
                _expand_to_batch(model.graph, node, index)


def _expand_to_batch(graph: ir.Graph, node: ir.Node, index: int) -> None:
    ones = graph.initializers.get("batch_only")
    if ones is None:
        tensor = ir.tensor(np.array([1, 1]), name="batch_only")
        ones = ir.val("batch_only", dtype=tensor.dtype, shape=(2,), const_value=tensor)
        graph.register_initializer(ones)
    batch = ir.node("Shape", [node.inputs[0]], attributes={"start": 0, "end": 1})
    shape = ir.node("Concat", [batch.outputs[0], ones], attributes={"axis": 0})
    expand = ir.node("Expand", [node.inputs[index], shape.outputs[0]])
    graph.insert_before(node, [batch, shape, expand])
    node.replace_input_with(index, expand.outputs[0])
