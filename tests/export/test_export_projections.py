"""Quantized matrix products on small graphs written by hand, run by ONNX Runtime."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime import InferenceSession

from sf_export.graph import MODULE_KEY, serialize
from sf_export.projections import ProjectionQuantizer, groups_of, products_with_weights, split_gemms
from sf_export.rounding import WeightRange, round_weight
from sf_export.schemes import Scheme

IN, OUT = 96, 40
UP, GATE = "base.layers.0.mlp.up_proj", "base.layers.0.mlp.gate_proj"


def _constant(graph_inputs: list[ir.Value], name: str, array: np.ndarray) -> ir.Value:
    value = ir.val(name, dtype=ir.DataType.FLOAT, shape=array.shape, const_value=ir.tensor(array, name=name))
    graph_inputs.append(value)
    return value


def _model(nodes: list[ir.Node], x: ir.Value, outputs: list[ir.Value], constants: list[ir.Value]) -> ir.Model:
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=constants, opset_imports={"": 18}, name="hand_made")
    return ir.Model(graph, ir_version=10)


def _input(*shape: str | int) -> ir.Value:
    return ir.val("x", dtype=ir.DataType.FLOAT, shape=shape)


def _output(node: ir.Node, name: str) -> ir.Value:
    value = node.outputs[0]
    value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(["batch", "tokens", OUT])
    return value


@pytest.fixture
def two_products() -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """`up = x @ A`, `gate = x @ B`, with their weights."""
    random = np.random.default_rng(1)
    weights = [random.normal(size=(IN, OUT)).astype(np.float32) for _ in range(2)]
    x = _input("batch", "tokens", IN)
    constants: list[ir.Value] = []
    up = ir.node("MatMul", [x, _constant(constants, "a", weights[0])], metadata_props={MODULE_KEY: UP})
    gate = ir.node("MatMul", [x, _constant(constants, "b", weights[1])], metadata_props={MODULE_KEY: GATE})
    model = _model([up, gate], x, [_output(up, "up"), _output(gate, "gate")], constants)
    return model, weights[0], weights[1]


def _run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    return InferenceSession(serialize(model.clone()), providers=["CPUExecutionProvider"]).run(None, {"x": x})


def _uneven(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Activations with one massive channel and one massive token, as language models have them."""
    x = random.normal(size=shape).astype(np.float32)
    x[..., 7] *= 60
    x[:, 0] *= 40
    return x


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)))


def _quantizer(model: ir.Model, x: np.ndarray) -> ProjectionQuantizer:
    peaks = np.abs(x).max(axis=(0, 1))
    return ProjectionQuantizer(model, {UP: peaks, GATE: peaks}, WeightRange.PAIRS)


def _everywhere(scheme: Scheme) -> dict[str, Scheme]:
    return {"x": scheme}


INT8_SCHEMES = [Scheme.INT8_PER_TOKEN, Scheme.INT8_SMOOTHED, Scheme.INT8_ROTATED]


def test_products_that_read_the_same_activation_form_a_group_named_after_layer_and_modules(two_products) -> None:
    (group,) = groups_of(two_products[0])
    assert (group.name, group.kind) == ("layer 0: mlp.up_proj, gate_proj", "mlp.up_proj, gate_proj")
    assert (group.activation, group.modules) == ("x", (UP, GATE))
    assert (group.shape.inputs, group.shape.outputs) == (IN, 2 * OUT)


def test_each_scheme_is_more_precise_than_plain_int8_on_uneven_activations(two_products) -> None:
    model, a, _ = two_products
    x = _uneven(np.random.default_rng(2), 2, 11, IN)
    quantizer = _quantizer(model, x)
    errors = {scheme: _relative(_run(quantizer.build(_everywhere(scheme)), x)[0], x @ a) for scheme in Scheme}
    assert errors[Scheme.INT8_PER_TOKEN] < errors[Scheme.INT8_DYNAMIC] / 4
    assert errors[Scheme.INT8_SMOOTHED] < errors[Scheme.INT8_PER_TOKEN]
    assert errors[Scheme.INT8_ROTATED] < errors[Scheme.INT8_PER_TOKEN]
    assert errors[Scheme.FLOAT] < 1e-3
    assert errors[Scheme.FP32] < 1e-6


@pytest.mark.parametrize("scheme", INT8_SCHEMES)
def test_the_result_of_a_sample_does_not_depend_on_its_batch(two_products, scheme: Scheme) -> None:
    x = _uneven(np.random.default_rng(3), 4, 9, IN)
    quantized = _quantizer(two_products[0], x).build(_everywhere(scheme))
    together = _run(quantized, x)[0]
    alone = np.concatenate([_run(quantized, x[index : index + 1])[0] for index in range(4)])
    np.testing.assert_array_equal(together, alone)


def test_a_variants_weights_are_freed_once_it_is_written_and_forgotten_without_the_garbage_collector(
    two_products,
) -> None:
    x = _uneven(np.random.default_rng(3), 1, 5, IN)
    quantizer = _quantizer(two_products[0], x)
    variant = quantizer.build(_everywhere(Scheme.INT8_PER_TOKEN))
    levels = [value.const_value for value in variant.graph.initializers.values() if value.shape == (IN, OUT)]
    watched = [
        weakref.ref(tensor.numpy()) for tensor in levels if tensor is not None and tensor.dtype == ir.DataType.INT8
    ]
    del levels
    assert watched
    gc.disable()
    try:
        serialize(variant)
        quantizer.forget_weights()
        assert [array() for array in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_the_per_token_product_follows_its_formula(two_products) -> None:
    model, a, _ = two_products
    x = _uneven(np.random.default_rng(4), 1, 6, IN)
    quantized = _quantizer(model, x).build(_everywhere(Scheme.INT8_PER_TOKEN))
    peak = np.abs(x).max(axis=-1, keepdims=True)
    weight = round_weight(a, WeightRange.PAIRS)
    levels = np.rint(x / peak / np.float32(1 / 127)).astype(np.int64)
    wanted = (levels @ weight.levels.astype(np.int64)) * (weight.scales / 127) * peak
    np.testing.assert_allclose(_run(quantized, x)[0], wanted, rtol=1e-5, atol=1e-4)


def test_no_sum_saturates_on_this_processor_when_everything_is_as_large_as_it_can_be() -> None:
    """Weights whose neighbours add up to the limit, and activations that are all at their peak, in both signs."""
    weight = np.where(np.arange(IN)[:, None] % 4 < 2, 1.0, -1.0).astype(np.float32) * np.ones((1, OUT), np.float32)
    x_value = _input("batch", "tokens", IN)
    constants: list[ir.Value] = []
    node = ir.node("MatMul", [x_value, _constant(constants, "a", weight)], metadata_props={MODULE_KEY: UP})
    model = _model([node], x_value, [_output(node, "up")], constants)
    x = np.stack([np.sign(weight[:, 0]), -np.sign(weight[:, 0]), np.ones(IN, np.float32)])[None]
    for levels in WeightRange:
        quantizer = ProjectionQuantizer(model, {}, levels)
        exact = _run(quantizer.build(_everywhere(Scheme.INT8_PER_TOKEN), exact=True), x)[0]
        np.testing.assert_allclose(exact, x @ weight, rtol=0.01, atol=0.5)
        if levels is WeightRange.PAIRS:
            fast = _run(quantizer.build(_everywhere(Scheme.INT8_PER_TOKEN)), x)[0]
            np.testing.assert_array_equal(fast, exact)


def test_the_exact_graph_computes_the_same_numbers_as_the_fast_one(two_products) -> None:
    x = _uneven(np.random.default_rng(10), 2, 7, IN)
    quantizer = _quantizer(two_products[0], x)
    for scheme in INT8_SCHEMES:
        fast, exact = (_run(quantizer.build(_everywhere(scheme), exact=exact), x)[0] for exact in (False, True))
        np.testing.assert_array_equal(fast, exact)


def test_rows_of_zeros_give_zeros_and_not_nan(two_products) -> None:
    x = np.zeros((1, 3, IN), dtype=np.float32)
    for scheme in Scheme:
        for result in _run(_quantizer(two_products[0], x).build(_everywhere(scheme)), x):
            np.testing.assert_array_equal(result, np.zeros((1, 3, OUT), dtype=np.float32))


def test_an_activation_is_rounded_once_for_all_products_that_read_it(two_products) -> None:
    x = _uneven(np.random.default_rng(5), 1, 5, IN)
    both = _quantizer(two_products[0], x).build(_everywhere(Scheme.INT8_PER_TOKEN))
    operators = [node.op_type for node in both.graph]
    assert operators.count("QuantizeLinear") == 1
    assert operators.count("MatMulIntegerToFloat") == 2
    assert products_with_weights(both) == []


def test_building_a_variant_leaves_the_original_graph_as_it_was(two_products) -> None:
    model = two_products[0]
    x = _uneven(np.random.default_rng(6), 1, 5, IN)
    before = serialize(model.clone())
    for scheme in Scheme:
        _quantizer(model, x).build(_everywhere(scheme))
    assert serialize(model.clone()) == before


def test_a_norm_absorbs_the_smoothing_and_nothing_is_left_to_do_for_it_at_run_time() -> None:
    random = np.random.default_rng(11)
    weight, scale = random.normal(size=(IN, OUT)).astype(np.float32), random.normal(size=IN).astype(np.float32)
    x_value = _input("batch", "tokens", IN)
    constants: list[ir.Value] = []
    norm = ir.node("RMSNormalization", [x_value, _constant(constants, "scale", scale)])
    norm.outputs[0].name = "normed"
    node = ir.node("MatMul", [norm.outputs[0], _constant(constants, "a", weight)], metadata_props={MODULE_KEY: UP})
    model = _model([norm, node], x_value, [_output(node, "up")], constants)
    model.graph.opset_imports[""] = 23
    x = random.normal(size=(1, 5, IN)).astype(np.float32)
    wanted = _run(model.clone(), x)[0]
    peaks = np.abs(scale).astype(np.float32) * 3  # what a normed activation reaches
    smoothed = ProjectionQuantizer(model, {UP: peaks}, WeightRange.PAIRS).build({"normed": Scheme.INT8_SMOOTHED})
    operators = [node.op_type for node in smoothed.graph]
    assert operators.count("RMSNormalization") == 1
    assert operators.count("Mul") == 1  # the token's scale, after the product
    assert _relative(_run(smoothed, x)[0], wanted) < 0.03


def test_products_without_known_input_peaks_are_smoothed_by_nothing(two_products) -> None:
    model, a, _ = two_products
    x = np.random.default_rng(8).normal(size=(1, 5, IN)).astype(np.float32)
    quantized = ProjectionQuantizer(model, {}, WeightRange.PAIRS).build(_everywhere(Scheme.INT8_SMOOTHED))
    assert _relative(_run(quantized, x)[0], x @ a) < 0.03


def test_fp16_weights_take_half_the_room(two_products) -> None:
    x = np.zeros((1, 3, IN), dtype=np.float32)
    quantizer = _quantizer(two_products[0], x)
    whole, half = (len(serialize(quantizer.build(_everywhere(scheme)))) for scheme in (Scheme.FP32, Scheme.FLOAT))
    assert whole - half == pytest.approx(2 * IN * OUT * 2, abs=600)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_gemm_becomes_a_product_and_a_sum_of_the_same_value(transposed: bool) -> None:
    random = np.random.default_rng(9)
    weight = random.normal(size=(OUT, IN) if transposed else (IN, OUT)).astype(np.float32)
    bias = random.normal(size=OUT).astype(np.float32)
    x = _input("rows", IN)
    constants: list[ir.Value] = []
    inputs = [x, _constant(constants, "w", weight), _constant(constants, "b", bias)]
    gemm = ir.node("Gemm", inputs, attributes={"transB": int(transposed)}, metadata_props={MODULE_KEY: UP})
    result = gemm.outputs[0]
    result.name, result.dtype, result.shape = "y", ir.DataType.FLOAT, ir.Shape(["rows", OUT])
    model = _model([gemm], x, [result], constants)
    split_gemms(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    assert [group.kind for group in groups_of(model)] == ["mlp.up_proj"]
    rows = random.normal(size=(5, IN)).astype(np.float32)
    wanted = rows @ (weight.T if transposed else weight) + bias
    np.testing.assert_allclose(_run(model, rows)[0], wanted, rtol=1e-4, atol=1e-5)
