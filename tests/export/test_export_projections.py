"""Quantized matrix products on small graphs written by hand, run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime import InferenceSession

from sf_export.graph import MODULE_KEY, serialize
from sf_export.projections import (
    WEIGHT_PEAK,
    ProjectionQuantizer,
    Scheme,
    kinds,
    products_with_weights,
    quantize_weight,
    smoothing_scales,
    split_gemms,
)

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
    return InferenceSession(serialize(model), providers=["CPUExecutionProvider"]).run(None, {"x": x})


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
    return ProjectionQuantizer(model, {UP: peaks, GATE: peaks})


def test_weights_have_seven_bits_and_one_scale_per_output_channel() -> None:
    weight = np.random.default_rng(0).normal(size=(IN, OUT)).astype(np.float32)
    weight[:, 3] = 0
    found = quantize_weight(weight)
    assert found.levels.dtype == np.int8
    assert np.abs(found.levels).max() == WEIGHT_PEAK
    # Two products of an activation and a weight must fit into 16 bits.
    assert 2 * 255 * WEIGHT_PEAK < 2**15
    assert (np.abs(found.levels * found.scales - weight) <= found.scales / 2 * 1.0001).all()
    assert found.scales[3] == 1


def test_kinds_are_named_after_the_module_inside_its_block(two_products) -> None:
    assert kinds(two_products[0]) == ("mlp.up_proj", "mlp.gate_proj")


def test_each_scheme_is_more_precise_than_the_one_below_it_on_uneven_activations(two_products) -> None:
    model, a, _ = two_products
    x = _uneven(np.random.default_rng(2), 2, 11, IN)
    quantizer = _quantizer(model, x)
    schemes = (Scheme.INT8_DYNAMIC, Scheme.INT8_PER_TOKEN, Scheme.INT8_SMOOTHED, Scheme.FP32)
    errors = [_relative(_run(quantizer.build(dict.fromkeys(kinds(model), scheme)), x)[0], x @ a) for scheme in schemes]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < errors[0] / 4
    assert errors[3] < 1e-6


@pytest.mark.parametrize("scheme", [Scheme.INT8_PER_TOKEN, Scheme.INT8_SMOOTHED])
def test_the_result_of_a_sample_does_not_depend_on_its_batch(two_products, scheme: Scheme) -> None:
    model = two_products[0]
    x = _uneven(np.random.default_rng(3), 4, 9, IN)
    quantized = _quantizer(model, x).build(dict.fromkeys(kinds(model), scheme))
    together = _run(quantized, x)[0]
    alone = np.concatenate([_run(quantized, x[index : index + 1])[0] for index in range(4)])
    np.testing.assert_array_equal(together, alone)


def test_the_per_token_product_follows_its_formula(two_products) -> None:
    model, a, _ = two_products
    x = _uneven(np.random.default_rng(4), 1, 6, IN)
    quantized = _quantizer(model, x).build(dict.fromkeys(kinds(model), Scheme.INT8_PER_TOKEN))
    peak = np.abs(x).max(axis=-1, keepdims=True)
    weight = quantize_weight(a)
    levels = np.rint(x / peak / np.float32(1 / 127)).astype(np.int64)
    wanted = (levels @ weight.levels.astype(np.int64)) * (weight.scales / 127) * peak
    np.testing.assert_allclose(_run(quantized, x)[0], wanted, rtol=1e-5, atol=1e-4)


def test_rows_of_zeros_give_zeros_and_not_nan(two_products) -> None:
    model = two_products[0]
    x = np.zeros((1, 3, IN), dtype=np.float32)
    for scheme in Scheme:
        for result in _run(_quantizer(model, x).build(dict.fromkeys(kinds(model), scheme)), x):
            np.testing.assert_array_equal(result, np.zeros((1, 3, OUT), dtype=np.float32))


def test_kinds_are_quantized_one_by_one_and_share_the_rounding_of_their_input(two_products) -> None:
    model = two_products[0]
    x = _uneven(np.random.default_rng(5), 1, 5, IN)
    quantizer = _quantizer(model, x)
    one = quantizer.build({"mlp.up_proj": Scheme.FP32, "mlp.gate_proj": Scheme.INT8_PER_TOKEN})
    assert len(products_with_weights(one)) == 1
    both = quantizer.build(dict.fromkeys(kinds(model), Scheme.INT8_PER_TOKEN))
    assert sum(node.op_type == "QuantizeLinear" for node in both.graph) == 1


def test_building_a_variant_leaves_the_original_graph_as_it_was(two_products) -> None:
    model = two_products[0]
    x = _uneven(np.random.default_rng(6), 1, 5, IN)
    before = serialize(model.clone())
    _quantizer(model, x).build(dict.fromkeys(kinds(model), Scheme.INT8_SMOOTHED))
    assert serialize(model.clone()) == before


def test_onnx_runtime_turns_the_pairs_into_one_integer_product(two_products, tmp_path) -> None:
    from onnxruntime import SessionOptions

    model = two_products[0]
    x = _uneven(np.random.default_rng(7), 1, 5, IN)
    options = SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    quantized = _quantizer(model, x).build(dict.fromkeys(kinds(model), Scheme.INT8_PER_TOKEN))
    InferenceSession(serialize(quantized), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph]
    assert operators.count("MatMulIntegerToFloat") == 2
    assert "MatMul" not in operators


def test_products_without_known_input_peaks_are_smoothed_by_nothing(two_products) -> None:
    model, a, _ = two_products
    x = np.random.default_rng(8).normal(size=(1, 5, IN)).astype(np.float32)
    quantized = ProjectionQuantizer(model, {}).build(dict.fromkeys(kinds(model), Scheme.INT8_SMOOTHED))
    assert _relative(_run(quantized, x)[0], x @ a) < 0.03


def test_smoothing_moves_the_peak_of_a_channel_evenly_between_activation_and_weight() -> None:
    activations, weights = np.array([100.0, 1.0], np.float32), np.array([1.0, 4.0], np.float32)
    scales = smoothing_scales(activations, weights)
    np.testing.assert_allclose(activations / scales, weights * scales, rtol=1e-6)


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
    assert kinds(model) == ("mlp.up_proj",)
    rows = random.normal(size=(5, IN)).astype(np.float32)
    wanted = rows @ (weight.T if transposed else weight) + bias
    np.testing.assert_allclose(_run(model, rows)[0], wanted, rtol=1e-4, atol=1e-5)
