"""`sf-bench kernels`: from the command line to a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from sf_bench.front_end_command import whole_numbers
from sf_bench.kernels import Shape, kernel_table, measure_kernels
from sf_contract.command import ArgumentParser, print_json, say
from sf_edge.bench.machine import describe_machine

SMOLLM2: Final = (Shape(576, 576, 2), Shape(576, 192, 2), Shape(576, 1536, 2), Shape(1536, 576, 1))

_HELP = """Each kernel is a graph of one node in its own ONNX Runtime session, weights prepacked; the kernels of a shape
take turns. Integer operands are named x-type x weight-type: u8 and s8 take different paths on AVX2, VNNI and ARM.
A cell is thousand million multiply-adds per second, and the speed against fp32 MatMul of the same shape; the last
column is all products of a layer one after the other.

examples:
  sf-bench kernels
  sf-bench kernels --model openai-community/gpt2 --rows 64
  sf-bench kernels --shapes 768x2304,768x768,768x3072,3072x768 --rows 1,64 --threads 2 --json"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    parser = ArgumentParser(
        prog="sf-bench kernels", description="Measure ONNX Runtime's matrix products.", epilog=_HELP
    )
    parser.add_argument(
        "--shapes",
        type=parse_shapes,
        default=None,
        metavar="KxN,KxN",
        help="weights of a layer, KxN*C where it has C of them (default: --model's, else SmolLM2-135M's)",
    )
    parser.add_argument("--model", default=None, metavar="ID|DIR|FILE", help="take the shapes of this model's layers")
    parser.add_argument("--rows", type=whole_numbers, default=(64, 16, 128), metavar="N,N", help="default: 64,16,128")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON document on standard output")
    given = parser.parse_args(arguments)
    speeds = measure_kernels(_wanted_shapes(given.shapes, given.model), given.rows, threads=given.threads, say=say)
    machine = describe_machine()
    if given.json:
        print_json({"machine": msgspec.to_builtins(machine), "kernels": msgspec.to_builtins(speeds)})
    else:
        print(f"{machine.line}; threads: {given.threads}; GMAC/s and speed against fp32\n{kernel_table(speeds)}")
    return 0


def _wanted_shapes(shapes: tuple[Shape, ...] | None, model: str | None) -> tuple[Shape, ...]:
    if shapes is not None:
        return shapes
    if model is None:
        return SMOLLM2
    from sf_bench.kernel_shapes import layer_shapes  # noqa: PLC0415  # PyTorch: only to open a model

    return layer_shapes(model)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Weights of a layer, written as `KxN,KxN*COUNT`, for argparse."""
    found = []
    for part in text.split(","):
        weight, _, count = part.partition("*")
        inner, outer = weight.split("x")
        found.append(Shape(int(inner), int(outer), int(count or 1)))
    return tuple(found)
