"""The graphs of single matrix products, and their table."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sf_bench.kernel_graphs import KERNELS, build_product
from sf_bench.kernels import WHOLE, Shape, kernel_table, measure_kernels
from sf_bench.kernels_command import parse_shapes
from sf_contract.front_end import open_session

ROWS, INNER, OUTER = 3, 64, 32


def _constants(graph: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(graph).graph.initializer}


def _expected(x: np.ndarray, constants: dict[str, np.ndarray]) -> np.ndarray:
    """The product in exact arithmetic, from zero points and scales."""
    w = constants["w"].astype(np.float64) - constants.get("w_zero", 0)
    shifted = x.astype(np.float64) - constants.get("x_zero", 0)
    return shifted @ w * constants.get("x_scale", 1) * constants.get("w_scale", 1)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.op != "MatMulNBits"], ids=lambda kernel: kernel.name)
def test_a_kernel_computes_the_product_that_its_operands_describe(kernel):
    product = build_product(kernel, rows=ROWS, inner=INNER, outer=OUTER)
    (y,) = open_session(product.graph).run(None, {"x": product.x})
    exact = _expected(product.x, _constants(product.graph))
    rounds_x = kernel.op == "DynamicQuantizeMatMul"
    assert y.shape == (ROWS, OUTER)
    assert np.abs(y - exact).max() <= (0.02 if rounds_x else 1e-5) * np.abs(exact).max()


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.op == "MatMulNBits"], ids=lambda kernel: kernel.name)
def test_a_product_in_blocks_runs_where_the_last_block_is_short_too(kernel):
    product = build_product(kernel, rows=ROWS, inner=kernel.block + 16, outer=OUTER)
    (y,) = open_session(product.graph).run(None, {"x": product.x})
    assert y.shape == (ROWS, OUTER)
    assert np.isfinite(y).all()


def test_speeds_are_relative_to_fp32_and_a_layer_is_the_sum_of_its_products():
    speeds = measure_kernels((Shape(64, 32, 2), Shape(32, 64)), (4,), threads=1, say=lambda _: None, rounds=1)
    assert len(speeds) == len(KERNELS) * 3
    baseline = [speed for speed in speeds if speed.kernel == KERNELS[0].name]
    assert [speed.ratio for speed in baseline] == [1, 1, 1]
    times = {speed.shape: speed.time_us for speed in baseline}
    assert times[WHOLE] == pytest.approx(2 * times["64x32"] + times["32x64"])


def test_the_table_names_every_kernel_once_per_number_of_rows():
    speeds = measure_kernels((Shape(32, 32),), (1, 2), threads=1, say=lambda _: None, rounds=1)
    table = kernel_table(speeds)
    assert all(table.count(f"\n{kernel.name} ") == 2 for kernel in KERNELS)


def test_shapes_are_read_with_and_without_a_count():
    assert parse_shapes("576x192*2,1536x576") == (Shape(576, 192, 2), Shape(1536, 576, 1))
