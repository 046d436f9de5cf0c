"""Rounding weights to integers, and the orthogonal rotation that makes rounding cheap. Pure NumPy.

**Processors without VNNI or dot products** multiply unsigned activations with signed weights in pairs and add each pair in
16 bits (`vpmaddubsw`): `u[2i] * w[2i] + u[2i+1] * w[2i+1]` with `u <= 255` must stay inside +-32,767, or it saturates
in silence. So that it never does, `WeightRange.PAIRS` chooses each output channel's scale such that no two
neighbouring levels add up to more than 128 (255 * 128 = 32,640). That costs about a fifth of a bit, where the usual
reduced range of 7 bits costs a whole one.

**Rotation.** Massive channels make one scale per token coarse for all others. `x H` with the Hadamard matrix `H` of a block of
channels spreads each channel over its block; `(x H) (H^T W) = x W`, so the weight absorbs the inverse
(QuaRot, arXiv 2404.00456, applied here to each product's input on its own).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

LEVEL_PEAK: Final = 127
PAIR_PEAK: Final = 128
"""Largest sum of two neighbouring levels that 255 times stays inside 16 bits."""

ROTATION_CHANNELS: Final = 64
_SMALLEST_ROTATION: Final = 8
_SMALLEST_PEAK: Final = 1e-5
SMOOTHING_ALPHA: Final = 0.75
"""How much of a massive channel moves into the weights. Measured on SmolLM2: 0.5 leaves more error, 0.75 and more the same."""


class WeightRange(enum.Enum):
    """Which levels a rounded weight may have."""

    FULL = "full"
    """-127 to 127: for processors that add products in 32 bits."""
    PAIRS = "pairs"
    """The same, and neighbours along the input add up to at most 128 in magnitude: for every processor."""


@dataclass(frozen=True, slots=True, eq=False)
class IntegerWeight:
    """`levels` int8 `[in, out]` times `scales` float32 `[out]`."""

    levels: npt.NDArray[np.int8]
    scales: FloatArray


def round_weight(weight: FloatArray, levels: WeightRange) -> IntegerWeight:
    """Symmetric rounding of a weight `[in, out]` with one scale per output channel."""
    peaks = np.abs(weight).max(axis=0) / np.float32(LEVEL_PEAK)
    if levels is WeightRange.PAIRS:
        # Rounding can add half a level to each of the two.
        peaks = np.maximum(peaks, _largest_pair(weight) / np.float32(PAIR_PEAK - 1))
    scales = np.where(peaks > 0, peaks, np.float32(1)).astype(np.float32)
    return IntegerWeight(levels=np.rint(weight / scales).astype(np.int8), scales=scales)


def largest_rotation(channels: int) -> int | None:
    """Block size for rotating this many channels: the largest power of two up to 64 that divides them; None below 8."""
    size = ROTATION_CHANNELS
    while channels % size:
        size //= 2
    return size if size >= _SMALLEST_ROTATION else None


def hadamard(size: int) -> FloatArray:
    """The orthogonal, symmetric Hadamard matrix `[size, size]` of a power of two (Sylvester's construction)."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), dtype=np.float32)


def rotate_inputs(weight: FloatArray, size: int) -> FloatArray:
    """`H^T W` for a weight `[in, out]` whose input is rotated in blocks of `size` channels."""
    blocks = weight.reshape(-1, size, weight.shape[1])
    turned = np.einsum("ij,bjo->bio", hadamard(size), blocks)
    return np.asarray(turned.reshape(weight.shape), dtype=np.float32)


def smoothing_scales(activation_peaks: FloatArray, weight_peaks: FloatArray) -> FloatArray:
    """SmoothQuant's scales `[in]` (arXiv 2211.10438, eq. 4): `max|x|^alpha / max|W|^(1 - alpha)`."""
    numerator = np.maximum(activation_peaks, _SMALLEST_PEAK) ** SMOOTHING_ALPHA
    return (numerator / np.maximum(weight_peaks, _SMALLEST_PEAK) ** (1 - SMOOTHING_ALPHA)).astype(np.float32)


def _largest_pair(weight: FloatArray) -> FloatArray:
    """Largest `|w[2i] + w[2i+1]|` of each output channel `[out]`."""
    even = len(weight) - len(weight) % 2
    if not even:
        return np.zeros(weight.shape[1], dtype=np.float32)
    pairs = weight[0:even:2] + weight[1:even:2]
    return np.asarray(np.abs(pairs).max(axis=0), dtype=np.float32)
