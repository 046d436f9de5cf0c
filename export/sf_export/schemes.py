"""How a matrix product can be computed on a device, and what that costs there. Pure.

Costs are in multiply-adds of an fp32 product, so that one table serves every model. They are constants, not timings taken
during an export: the same command must give the same bundle, on a busy machine too. Where each number was measured is
said in docs/methodology.md.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from sf_export.rounding import WeightRange, largest_rotation
from sf_export.settings import Target


class Scheme(enum.StrEnum):
    """How one matrix product `x @ W` is computed."""

    INT8_DYNAMIC = "int8-dynamic"
    """int8, one activation scale per call: what plain dynamic quantization does. Never chosen by the search."""
    INT8_PER_TOKEN = "int8-per-token"
    """int8, one activation scale per token, so that a sample's result never depends on its batch."""
    INT8_SMOOTHED = "int8-smoothed"
    """The same, after moving the scale of massive channels into the weights."""
    INT8_ROTATED = "int8-rotated"
    """The same, after spreading massive channels over blocks of channels."""
    FLOAT = "fp16-weights"
    """fp32 arithmetic; weights are kept in fp16 on disk and widened when the graph is loaded."""
    FP32 = "fp32"
    """Untouched. Never chosen by the search."""

    @property
    def is_int8(self) -> bool:
        """Whether the product is one of integers."""
        return self.value.startswith("int8")


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs on one class of processors, in multiply-adds of fp32.

    Attributes:
        int8_product: per multiply-add of an int8 product.
        quantized_input: per element of an activation that gets a scale per token and is rounded.
        scaled_output: per element of a product that is multiplied by its token's scale.
        rotated_input: per element of an activation that is rotated, over the block size.
    """

    int8_product: float
    quantized_input: float
    scaled_output: float
    rotated_input: float


COSTS: Final[dict[Target, Costs]] = {
    Target.X86_64: Costs(int8_product=0.50, quantized_input=38, scaled_output=29, rotated_input=0.85),
    Target.ARM64: Costs(int8_product=0.32, quantized_input=28, scaled_output=8, rotated_input=1.0),
}
COSTS[Target.ANY] = Costs(
    **{
        name: max(getattr(COSTS[target], name) for target in (Target.X86_64, Target.ARM64))
        for name in Costs.__dataclass_fields__
    }
)


def weight_range(target: Target) -> WeightRange:
    """Levels that no processor of the target adds up wrongly."""
    return WeightRange.FULL if target is Target.ARM64 else WeightRange.PAIRS


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the products that read one activation: its channels, and all their output channels together."""

    inputs: int
    outputs: int


def candidates(shape: Shape) -> tuple[Scheme, ...]:
    """Schemes the search may choose from, cheapest first."""
    rotated = (Scheme.INT8_ROTATED,) if largest_rotation(shape.inputs) else ()
    return (Scheme.INT8_PER_TOKEN, Scheme.INT8_SMOOTHED, *rotated, Scheme.FLOAT)


def relative_time(scheme: Scheme, shape: Shape, target: Target) -> float:
    """Time per token over that of the same products in fp32; 1 for fp32 itself."""
    if not scheme.is_int8:
        return 1.0
    costs = COSTS[target]
    per_input = costs.quantized_input
    if scheme is Scheme.INT8_ROTATED:
        per_input += costs.rotated_input * (largest_rotation(shape.inputs) or 0)
    products = shape.inputs * shape.outputs
    total = costs.int8_product * products + per_input * shape.inputs + costs.scaled_output * shape.outputs
    return total / products
