"""One-node ONNX graphs: the matrix products that ONNX Runtime offers for `x @ W` with a constant `W`."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.generic]

_MICROSOFT: Final = "com.microsoft"
_OPSETS: Final = (("", 21), (_MICROSOFT, 1))
_FLOAT: Final = TensorProto.FLOAT


class Kernel(msgspec.Struct, frozen=True):
    """A way to compute `x @ W`.

    Attributes:
        op: ONNX operator.
        left, right: types of `x` and of `W`: f32, u8, s8, or uB for B-bit blocks.
        block: weights that share a scale, 0 where every output channel has one.
        accuracy: MatMulNBits' accuracy level: 0 multiplies in fp32, 4 rounds `x` to int8 per block.
    """

    op: str
    left: str
    right: str
    block: int = 0
    accuracy: int = 0

    @property
    def name(self) -> str:
        """For tables."""
        blocks = f" block {self.block} acc {self.accuracy}" if self.block else ""
        return f"{self.op} {self.left} x {self.right}{blocks}"


KERNELS: Final = (
    Kernel("MatMul", "f32", "f32"),
    Kernel("DynamicQuantizeMatMul", "f32", "s8"),
    Kernel("DynamicQuantizeMatMul", "f32", "u8"),
    *(
        Kernel(op, left, right)
        for op in ("MatMulIntegerToFloat", "MatMulInteger")
        for left, right in (("u8", "s8"), ("u8", "u8"), ("s8", "s8"))
    ),
    *(
        Kernel("MatMulNBits", "f32", f"u{bits}", block=block, accuracy=accuracy)
        for bits in (8, 4)
        for block in (32, 128)
        for accuracy in (0, 4)
    ),
)


class Product(msgspec.Struct, frozen=True, eq=False):
    """A serialized graph and the `x` to feed it."""

    graph: bytes
    x: Array


def build_product(kernel: Kernel, *, rows: int, inner: int, outer: int) -> Product:
    """The graph of one kernel for `[rows, inner] @ [inner, outer]` with random content.

    Integer weights keep to 7 bits around their zero point, as the exporter's do.
    """
    generator = np.random.default_rng(0)
    x = _random(generator, kernel.left, (rows, inner))
    match kernel.op:
        case "MatMulNBits":
            node, constants = _blocks(kernel, generator, inner=inner, outer=outer)
        case _:
            node, constants = _plain(kernel, generator, inner=inner, outer=outer)
    result = TensorProto.INT32 if kernel.op == "MatMulInteger" else _FLOAT
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info("y", result, (rows, outer))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in _OPSETS], ir_version=10)
    return Product(graph=model.SerializeToString(), x=x)


def _random(generator: np.random.Generator, kind: str, shape: tuple[int, int]) -> Array:
    match kind:
        case "f32":
            return generator.standard_normal(shape).astype(np.float32)
        case "s8":
            return generator.integers(-63, 64, shape).astype(np.int8)
        case _:
            return generator.integers(65, 192, shape).astype(np.uint8)


def _zero(kind: str) -> Array:
    return np.array(0, dtype=np.int8) if kind == "s8" else np.array(128, dtype=np.uint8)


def _plain(
    kernel: Kernel, generator: np.random.Generator, *, inner: int, outer: int
) -> tuple[onnx.NodeProto, dict[str, Array]]:
    weight = _random(generator, kernel.right, (inner, outer))
    constants: dict[str, Array] = {"w": weight}
    scales: dict[str, Array] = {"w_scale": np.full(outer, 0.01, dtype=np.float32)}
    w_zero = {"w_zero": np.full(outer, _zero(kernel.right))}
    match kernel.op:
        case "DynamicQuantizeMatMul":
            constants |= scales | w_zero
        case "MatMulIntegerToFloat":
            constants |= {"x_scale": np.array(0.01, dtype=np.float32), **scales, "x_zero": _zero(kernel.left), **w_zero}
        case "MatMulInteger":
            constants |= {"x_zero": _zero(kernel.left), **w_zero}
        case _:
            pass
    domain = _MICROSOFT if kernel.op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat") else ""
    return helper.make_node(kernel.op, ["x", *constants], ["y"], domain=domain), constants


def _blocks(
    kernel: Kernel, generator: np.random.Generator, *, inner: int, outer: int
) -> tuple[onnx.NodeProto, dict[str, Array]]:
    bits = int(kernel.right.removeprefix("u"))
    blocks = -(-inner // kernel.block)
    packed = generator.integers(0, 256, (outer, blocks, kernel.block * bits // 8)).astype(np.uint8)
    constants: dict[str, Array] = {"w": packed, "w_scale": np.full(outer * blocks, 0.01, dtype=np.float32)}
    node = helper.make_node(
        kernel.op,
        ["x", *constants],
        ["y"],
        domain=_MICROSOFT,
        K=inner,
        N=outer,
        bits=bits,
        block_size=kernel.block,
        accuracy_level=kernel.accuracy,
    )
    return node, constants
