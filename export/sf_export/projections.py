"""Quantizing the matrix products of a graph, kind by kind.

The quantized form of `x @ W` is written with ONNX's standard QuantizeLinear and DequantizeLinear pairs, which ONNX Runtime
turns into one integer product (`MatMulIntegerToFloat`):

    m[t]    = max(|x[t, :] / s|)                   one scale per token, so a sample's result never depends on its batch
    x_q     = quantize(x / s / m, scale 1/127)     uint8 around 128
    W_q     = quantize(s * W, one scale per output channel)
    x @ W  ~= m * (x_q @ W_q)

`s` is 1, or the per-channel scales of SmoothQuant (arXiv 2211.10438, eq. 4 with alpha 0.5), which move massive channels
from the activations, where they cost precision, into the weights.

Weights have 7 bits: processors without VNNI add two products in 16 bits, and 255 * 127 * 2 saturates there while
255 * 63 * 2 does not. So a bundle computes the same on every processor, and on those it is more precise than 8 bits.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from sf_export.graph import MODULE_KEY

FloatArray = npt.NDArray[np.float32]

WEIGHT_PEAK: Final = 63
_ACTIVATION_PEAK: Final = 127
_ZERO_LEVEL: Final = 128
_TINY: Final = 1e-30
_SMALLEST_PEAK: Final = 1e-5
_FLOAT: Final = int(ir.DataType.FLOAT)


class Scheme(enum.StrEnum):
    """How one kind of matrix product is computed."""

    INT8_DYNAMIC = "int8-dynamic"
    """One activation scale per call (what plain dynamic quantization does)."""
    INT8_PER_TOKEN = "int8-per-token"
    INT8_SMOOTHED = "int8-per-token-smoothed"
    FP32 = "fp32"


@dataclass(frozen=True, slots=True, eq=False)
class IntegerWeight:
    """`levels` int8 `[in, out]` times `scales` float32 `[out]`."""

    levels: npt.NDArray[np.int8]
    scales: FloatArray


def quantize_weight(weight: FloatArray) -> IntegerWeight:
    """Symmetric rounding of a weight `[in, out]` with one scale per output channel."""
    peaks = np.abs(weight).max(axis=0)
    scales = np.where(peaks > 0, peaks / np.float32(WEIGHT_PEAK), np.float32(1)).astype(np.float32)
    return IntegerWeight(levels=np.rint(weight / scales).astype(np.int8), scales=scales)


def smoothing_scales(activation_peaks: FloatArray, weight_peaks: FloatArray) -> FloatArray:
    """SmoothQuant's scales `[in]` with alpha 0.5: `sqrt(max|x|) / sqrt(max|W|)`."""
    ratio = np.maximum(activation_peaks, _SMALLEST_PEAK) / np.maximum(weight_peaks, _SMALLEST_PEAK)
    return np.sqrt(ratio).astype(np.float32)


def products_with_weights(model: ir.Model) -> list[ir.Node]:
    """Matrix products whose right side is a two-dimensional constant, in graph order."""
    return [node for node in model.graph if node.op_type == "MatMul" and _is_weight(node.inputs[1])]


def module_of(node: ir.Node) -> str:
    """Dotted name of the module a matrix product comes from."""
    return node.metadata_props.get(MODULE_KEY, "other")


def kind_of(node: ir.Node) -> str:
    """The kind of a matrix product: its module's name inside the block, such as `mlp.down_proj`."""
    module = module_of(node)
    inside_block = re.search(r"\.\d+\.(.+)$", module)
    return inside_block[1] if inside_block else module.removeprefix("base.")


def kinds(model: ir.Model) -> tuple[str, ...]:
    """Kinds of matrix products in order of appearance."""
    return tuple(dict.fromkeys(kind_of(node) for node in products_with_weights(model)))


def split_gemms(model: ir.Model) -> None:
    """Rewrite `Gemm` with a constant weight (GPT-2's Conv1D) into `MatMul` + `Add`, in place."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and _is_weight(node.inputs[1]) and _is_plain_gemm(node):
            builder = _Builder(model.graph, node)
            product = builder.add("MatMul", [node.inputs[0], builder.weight_of(node)])
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            builder.replace_node(product if bias is None else builder.add("Add", [product, bias]))


class ProjectionQuantizer:
    """Builds quantized variants of one graph.

    Args:
        model: the fp32 graph, as `split_gemms` leaves it.
        input_peaks: largest absolute value of each input channel on real text, by module name.
    """

    def __init__(self, model: ir.Model, input_peaks: Mapping[str, FloatArray]) -> None:
        self._model = model
        self._smoothing = _smoothing_by_input(model, input_peaks)
        self._weights: dict[tuple[str, bool], IntegerWeight] = {}

    def build(self, choices: Mapping[str, Scheme]) -> ir.Model:
        """A copy of the graph in which every kind is computed as chosen."""
        model = self._model.clone()
        shared: dict[tuple[str, Scheme], tuple[ir.Value, ...]] = {}
        for node in products_with_weights(model):
            scheme = choices[kind_of(node)]
            if scheme is Scheme.FP32:
                continue
            builder = _Builder(model.graph, node)
            inputs = shared.get((_name(node.inputs[0]), scheme))
            if inputs is None:
                inputs = self._quantized_input(builder, node, scheme)
                shared[_name(node.inputs[0]), scheme] = inputs
            builder.replace_node(self._product(builder, node, scheme, inputs))
        passes.RemoveUnusedNodesPass()(model)
        return model

    def _quantized_input(self, builder: _Builder, node: ir.Node, scheme: Scheme) -> tuple[ir.Value, ...]:
        x = node.inputs[0]
        if scheme is Scheme.INT8_DYNAMIC:
            return builder.add_many("DynamicQuantizeLinear", [x], 3)
        if scheme is Scheme.INT8_SMOOTHED:
            x = builder.add("Mul", [x, builder.constant(f"{_name(x)}.smoothing", 1 / self._smoothing[_name(x)])])
        last_axis = builder.constant("last_axis", np.array([-1], dtype=np.int64))
        magnitude = builder.add("Abs", [x])
        peak = builder.add("ReduceMax", [magnitude, last_axis], keepdims=1)
        peak = builder.add("Max", [peak, builder.constant("tiny", np.array(_TINY, dtype=np.float32))])
        scale = builder.constant("token_scale", np.array(1 / _ACTIVATION_PEAK, dtype=np.float32))
        zero = builder.constant("token_zero", np.array(_ZERO_LEVEL, dtype=np.uint8))
        levels = builder.add("QuantizeLinear", [builder.add("Div", [x, peak]), scale, zero])
        return builder.add("DequantizeLinear", [levels, scale, zero]), peak

    def _product(self, builder: _Builder, node: ir.Node, scheme: Scheme, inputs: tuple[ir.Value, ...]) -> ir.Value:
        name = _name(node.inputs[1])
        weight = self._weight(node, smoothed=scheme is Scheme.INT8_SMOOTHED)
        suffix = "smoothed" if scheme is Scheme.INT8_SMOOTHED else "int8"
        levels = builder.constant(f"{name}.{suffix}", weight.levels)
        scales = builder.constant(f"{name}.{suffix}.scales", weight.scales)
        if scheme is Scheme.INT8_DYNAMIC:
            x, x_scale, x_zero = inputs
            product = builder.add("MatMulInteger", [x, levels, x_zero])
            return builder.add(
                "Mul", [builder.add("Cast", [product], to=_FLOAT), builder.add("Mul", [x_scale, scales])]
            )
        zeros = builder.constant(f"zeros_{weight.scales.size}", np.zeros(weight.scales.size, dtype=np.int8))
        right = builder.add("DequantizeLinear", [levels, scales, zeros], axis=1)
        return builder.add("Mul", [builder.add("MatMul", [inputs[0], right]), inputs[1]])

    def _weight(self, node: ir.Node, *, smoothed: bool) -> IntegerWeight:
        key = _name(node.inputs[1]), smoothed
        if key not in self._weights:
            weight = _weight_array(node.inputs[1])
            if smoothed:
                weight = weight * self._smoothing[_name(node.inputs[0])][:, None]
            self._weights[key] = quantize_weight(weight)
        return self._weights[key]


class _Builder:
    """Adds nodes before one node of a graph and puts their result in its place."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph = graph
        self._node = node

    def add(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Value:
        return self.add_many(op_type, inputs, 1, **attributes)[0]

    def add_many(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, **attributes: int
    ) -> tuple[ir.Value, ...]:
        node = ir.node(op_type, inputs, attributes=attributes, num_outputs=outputs)
        node.metadata_props.update(self._node.metadata_props)
        self._graph.insert_before(self._node, node)
        return tuple(node.outputs)

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        known = self._graph.initializers.get(name)
        if known is not None:
            return known
        tensor = ir.tensor(array, name=name)
        value = ir.val(name, dtype=tensor.dtype, shape=array.shape, const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def weight_of(self, node: ir.Node) -> ir.Value:
        value = node.inputs[1]
        assert value is not None
        if _flag(node, "transB"):
            return self.constant(f"{_name(value)}.transposed", _weight_array(value).T.copy())
        return value

    def replace_node(self, result: ir.Value) -> None:
        ir.convenience.replace_all_uses_with(self._node.outputs[0], result, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)


def _smoothing_by_input(model: ir.Model, input_peaks: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Smoothing scales `[in]` by the name of the products' input; products that share an input share the scales."""
    weight_peaks: dict[str, FloatArray] = {}
    modules: dict[str, str] = {}
    for node in products_with_weights(model):
        name = _name(node.inputs[0])
        peaks = np.abs(_weight_array(node.inputs[1])).max(axis=1)
        weight_peaks[name] = np.maximum(weight_peaks[name], peaks) if name in weight_peaks else peaks
        modules.setdefault(name, module_of(node))
    scales: dict[str, FloatArray] = {}
    for name, peaks in weight_peaks.items():
        found = input_peaks.get(modules[name])
        if found is None or found.shape != peaks.shape:
            scales[name] = np.ones_like(peaks)
        else:
            scales[name] = smoothing_scales(found, peaks)
    return scales


def _is_weight(value: ir.Value | None) -> bool:
    if value is None or value.const_value is None:
        return False
    return len(value.const_value.shape) == 2 and value.const_value.dtype == ir.DataType.FLOAT


def _weight_array(value: ir.Value | None) -> FloatArray:
    if value is None or value.const_value is None:
        raise ValueError("the product has no constant weight")
    return np.asarray(value.const_value.numpy(), dtype=np.float32)


def _is_plain_gemm(node: ir.Node) -> bool:
    scaled = any(node.attributes[name].as_float() != 1 for name in ("alpha", "beta") if name in node.attributes)
    return not scaled and not _flag(node, "transA")


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].as_int())


def _name(value: ir.Value | None) -> str:
    if value is None or value.name is None:
        raise ValueError("a value of the graph has no name")
    return value.name
