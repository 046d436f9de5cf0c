"""Quantizing the matrix products of a graph, group by group.

Products that read the same activation form a group (query, key and value; gate and up): the activation is rounded once for
all of them. In int8 the product is

    m[t]    = max(|x[t, :]|)                       one scale per token
    x_q     = quantize(x / m, scale 1/127)         uint8 around 128
    W_q     = round(W)                             int8, one scale per output channel
    x @ W  ~= m * (x_q @ W_q)                      one node: `MatMulIntegerToFloat`

where `x` and `W` may be smoothed or rotated before, which changes nothing but the rounding (see `sf_export.rounding`).
Unsigned activations and signed weights are the pair of types that ONNX Runtime multiplies fastest on x86 and no slower on
ARM; the other way round costs eight times as much on AVX2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from sf_export.graph import MODULE_KEY
from sf_export.rounding import (
    FloatArray,
    IntegerWeight,
    WeightRange,
    hadamard,
    largest_rotation,
    rotate_inputs,
    round_weight,
    smoothing_scales,
)
from sf_export.schemes import Scheme, Shape

ROTATION_SUFFIX: Final = ".rotation"
"""Ends the names of matrices that are no weights: the rotation inside an embedding."""

_CONTRIB: Final = "com.microsoft"
_ACTIVATION_PEAK: Final = 127
_ZERO_LEVEL: Final = 128
_TINY: Final = 1e-30
_FLOAT: Final = int(ir.DataType.FLOAT)
_NORMS: Final = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization")
_LAYER: Final = re.compile(r"\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class Group:
    """Products that read the same activation.

    Attributes:
        name: layer and modules, such as `layer 0: self_attn.q_proj, k_proj, v_proj`.
        kind: the same without the layer.
        activation: name of the value they read.
        modules: dotted names of their modules.
        shape: their sizes together.
    """

    name: str
    kind: str
    activation: str
    modules: tuple[str, ...]
    shape: Shape


def split_gemms(model: ir.Model) -> None:
    """Rewrite `Gemm` with a constant weight (GPT-2's Conv1D) into `MatMul` + `Add`, in place."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and _is_weight(node.inputs[1]) and _is_plain_gemm(node):
            builder = _Builder(model.graph, node)
            product = builder.add("MatMul", [node.inputs[0], builder.weight_of(node)])
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            builder.replace_node(product if bias is None else builder.add("Add", [product, bias]))


def products_with_weights(model: ir.Model) -> list[ir.Node]:
    """Matrix products whose right side is a weight: a two-dimensional constant; in graph order."""
    return [node for node in model.graph if node.op_type == "MatMul" and _is_weight(node.inputs[1])]


def groups_of(model: ir.Model) -> tuple[Group, ...]:
    """Groups of products in order of appearance."""
    found: dict[str, list[ir.Node]] = {}
    for node in products_with_weights(model):
        found.setdefault(_name(node.inputs[0]), []).append(node)
    return tuple(_group(activation, nodes) for activation, nodes in found.items())


class ProjectionQuantizer:
    """Builds quantized variants of one graph.

    Args:
        model: the fp32 graph, as `split_gemms` leaves it.
        input_peaks: largest absolute value of each input channel on real text, by module name.
        levels: which integers weights may have.
    """

    def __init__(self, model: ir.Model, input_peaks: Mapping[str, FloatArray], levels: WeightRange) -> None:
        self._model = model
        self._levels = levels
        self._smoothing = _smoothing_by_input(model, input_peaks)
        self._weights: dict[tuple[str, Scheme], IntegerWeight] = {}

    def forget_weights(self) -> None:
        """Free what was rounded while schemes were compared; whatever is built next is rounded again."""
        self._weights.clear()

    def build(self, schemes: Mapping[str, Scheme], *, exact: bool = False) -> ir.Model:
        """A copy of the graph in which the products that read an activation are computed by that activation's scheme.

        Args:
            schemes: by the activation's name.
            exact: write weights as uint8 around 128: the same numbers, in a kernel that never adds in 16 bits.
        """
        model = self._model.clone()
        model.graph.opset_imports.setdefault(_CONTRIB, 1)
        rounded: dict[str, tuple[ir.Value, ...]] = {}
        for node in products_with_weights(model):
            activation = _name(node.inputs[0])
            scheme = schemes[activation]
            builder = _Builder(model.graph, node)
            if scheme is Scheme.FLOAT:
                node.replace_input_with(1, builder.half_weight(node))
            elif scheme.is_int8:
                if activation not in rounded:
                    rounded[activation] = self._rounded(builder, node, scheme)
                builder.replace_node(self._product(builder, node, scheme, rounded[activation], exact))
        passes.RemoveUnusedNodesPass()(model)
        return model

    def _rounded(self, builder: _Builder, node: ir.Node, scheme: Scheme) -> tuple[ir.Value, ...]:
        """The activation in uint8, and its scale per token."""
        x = node.inputs[0]
        assert x is not None
        if scheme is Scheme.INT8_DYNAMIC:
            return builder.add_many("DynamicQuantizeLinear", [x], 3)
        if scheme is Scheme.INT8_SMOOTHED:
            x = builder.divided(x, self._smoothing[_name(x)])
        if scheme is Scheme.INT8_ROTATED:
            x = builder.rotated(x, _channels(node))
        peak = builder.add(
            "ReduceMax", [builder.add("Abs", [x]), builder.constant("last_axis", np.array([-1]))], keepdims=1
        )
        peak = builder.add("Max", [peak, builder.constant("tiny", np.array(_TINY, dtype=np.float32))])
        return builder.add("QuantizeLinear", [builder.add("Div", [x, peak]), *builder.token_grid()]), peak

    def _product(
        self, builder: _Builder, node: ir.Node, scheme: Scheme, rounded: tuple[ir.Value, ...], exact: bool
    ) -> ir.Value:
        name = f"{_name(node.inputs[1])}.{scheme.value}"
        weight = self._weight(node, scheme)
        if exact:
            raised = (weight.levels.astype(np.int16) + _ZERO_LEVEL).astype(np.uint8)
            zero_point = builder.constant("weight_zero", np.array(_ZERO_LEVEL, dtype=np.uint8))
            levels = [builder.constant(name, raised), zero_point]
        else:
            levels = [builder.constant(name, weight.levels)]
        scales = builder.constant(f"{name}.scales", weight.scales)
        if scheme is Scheme.INT8_DYNAMIC:
            x, x_scale, x_zero = rounded
            return builder.integer_product(x, levels, x_scale, scales, x_zero)
        scale, zero = builder.token_grid()
        return builder.add("Mul", [builder.integer_product(rounded[0], levels, scale, scales, zero), rounded[1]])

    def _weight(self, node: ir.Node, scheme: Scheme) -> IntegerWeight:
        key = _name(node.inputs[1]), scheme
        if key not in self._weights:
            weight = _weight_array(node.inputs[1])
            if scheme is Scheme.INT8_SMOOTHED:
                weight = weight * self._smoothing[_name(node.inputs[0])][:, None]
            if scheme is Scheme.INT8_ROTATED:
                weight = rotate_inputs(weight, _rotation(len(weight)))
            self._weights[key] = round_weight(weight, self._levels)
        return self._weights[key]


class _Builder:
    """Adds nodes before one node of a graph and puts their result in its place."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph = graph
        self._node = node

    def add(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Value:
        return self.add_many(op_type, inputs, 1, domain="", **attributes)[0]

    def add_many(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, *, domain: str = "", **attributes: int
    ) -> tuple[ir.Value, ...]:
        node = ir.node(op_type, inputs, attributes=attributes, num_outputs=outputs, domain=domain)
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

    def token_grid(self) -> tuple[ir.Value, ir.Value]:
        """Scale and zero of an activation that was divided by its token's peak."""
        scale = self.constant("token_scale", np.array(1 / _ACTIVATION_PEAK, dtype=np.float32))
        return scale, self.constant("token_zero", np.array(_ZERO_LEVEL, dtype=np.uint8))

    def integer_product(
        self, x: ir.Value, levels: Sequence[ir.Value], scale: ir.Value, scales: ir.Value, zero: ir.Value
    ) -> ir.Value:
        """`levels` are the weight's levels and, unless it is 0, its zero point."""
        inputs = [x, levels[0], scale, scales, zero, *levels[1:]]
        return self.add_many("MatMulIntegerToFloat", inputs, 1, domain=_CONTRIB)[0]

    def divided(self, x: ir.Value, scales: FloatArray) -> ir.Value:
        """`x / scales`, without a node of its own where a norm's weight can absorb them."""
        producer = x.producer()
        if producer is not None and producer.op_type in _NORMS and _all_constant(producer.inputs[1:]):
            parts = [
                self.constant(f"{_name(part)}.over.{_name(x)}", _weight_array(part) / scales)
                for part in producer.inputs[1:]
            ]
            copy = ir.node(
                producer.op_type,
                [producer.inputs[0], *parts],
                attributes=producer.attributes,
                domain=producer.domain,
            )
            self._graph.insert_before(self._node, copy)
            return copy.outputs[0]
        return self.add("Mul", [x, self.constant(f"{_name(x)}.smoothing", 1 / scales)])

    def rotated(self, x: ir.Value, channels: int) -> ir.Value:
        """`x` times the Hadamard matrix, block by block; `x` is `[batch, tokens, channels]`, or `[rows, channels]`."""
        size = _rotation(channels)
        rank = 3 if x.shape is None else x.shape.rank()
        kept = [0] * (rank - 1)  # Reshape keeps a size where it is given 0
        blocks = self.constant(f"blocks_of_{size}_rank_{rank}", np.array([*kept, -1, size]))
        whole = self.constant(f"rows_of_{channels}_rank_{rank}", np.array([*kept, channels]))
        matrix = self.constant(f"hadamard_{size}{ROTATION_SUFFIX}", hadamard(size))
        turned = self.add("MatMul", [self.add("Reshape", [x, blocks]), matrix])
        return self.add("Reshape", [turned, whole])

    def half_weight(self, node: ir.Node) -> ir.Value:
        """The weight in fp16, widened by a node that ONNX Runtime runs once, when it loads the graph."""
        name = f"{_name(node.inputs[1])}.fp16"
        half = self.constant(name, _weight_array(node.inputs[1]).astype(np.float16))
        return self.add("Cast", [half], to=_FLOAT)

    def weight_of(self, node: ir.Node) -> ir.Value:
        value = node.inputs[1]
        assert value is not None
        if _flag(node, "transB"):
            return self.constant(f"{_name(value)}.transposed", _weight_array(value).T.copy())
        return value

    def replace_node(self, result: ir.Value) -> None:
        ir.convenience.replace_all_uses_with(self._node.outputs[0], result, replace_graph_outputs=True)
        self._graph.remove(self._node, safe=True)


def _group(activation: str, nodes: Sequence[ir.Node]) -> Group:
    modules = tuple(node.metadata_props.get(MODULE_KEY, "other") for node in nodes)
    layers = [_LAYER.search(module) for module in modules]
    inside = [
        found[2] if found else module.removeprefix("base.") for found, module in zip(layers, modules, strict=True)
    ]
    kind = ", ".join([inside[0], *(name.rpartition(".")[2] for name in inside[1:])])
    layer = layers[0]
    weights = [_weight_array(node.inputs[1]) for node in nodes]
    return Group(
        name=f"layer {layer[1]}: {kind}" if layer else kind,
        kind=kind,
        activation=activation,
        modules=modules,
        shape=Shape(inputs=len(weights[0]), outputs=sum(weight.shape[1] for weight in weights)),
    )


def _smoothing_by_input(model: ir.Model, input_peaks: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Smoothing scales `[in]` by the name of the products' input; products that share an input share the scales."""
    weight_peaks: dict[str, FloatArray] = {}
    modules: dict[str, str] = {}
    for node in products_with_weights(model):
        name = _name(node.inputs[0])
        peaks = np.abs(_weight_array(node.inputs[1])).max(axis=1)
        weight_peaks[name] = np.maximum(weight_peaks[name], peaks) if name in weight_peaks else peaks
        modules.setdefault(name, node.metadata_props.get(MODULE_KEY, "other"))
    scales: dict[str, FloatArray] = {}
    for name, peaks in weight_peaks.items():
        found = input_peaks.get(modules[name])
        known = found is not None and found.shape == peaks.shape
        scales[name] = smoothing_scales(found, peaks) if known and found is not None else np.ones_like(peaks)
    return scales


def _rotation(channels: int) -> int:
    size = largest_rotation(channels)
    if size is None:
        raise ValueError(f"{channels} channels cannot be rotated in blocks")
    return size


def _channels(node: ir.Node) -> int:
    return len(_weight_array(node.inputs[1]))


def _all_constant(values: Sequence[ir.Value | None]) -> bool:
    return all(value is not None and value.const_value is not None for value in values)


def _is_weight(value: ir.Value | None) -> bool:
    if value is None or value.const_value is None:
        return False
    is_matrix = len(value.const_value.shape) == 2 and value.const_value.dtype == ir.DataType.FLOAT
    return is_matrix and not str(value.name).endswith(ROTATION_SUFFIX)


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
