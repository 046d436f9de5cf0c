"""Every tolerance of the tests, with its reason."""

from __future__ import annotations

FP32_RELATIVE = 2e-5
"""fp32 results along two paths that add in another order (other batch shape, ONNX Runtime's kernels)."""

EXACT = 0.0
"""The same operations in the same order."""

BF16_RELATIVE = 0.05
"""bf16 keeps 8 bits: one rounding is 0.4 %, and some dozens add up over the layers of a back end."""

QUICKSTART_ACCURACY = 0.02
"""Accuracy with the quantized front end against the fp32 one on the quickstart's 280 unseen sentences. One sentence is 0.36
points, and by chance alone the difference of two equally good ones strays by about 0.7 points (one standard deviation, with
four sentences that only one of them gets right). On 861 such sentences it was 0.1, -1.0 and -0.1 points in three runs with a
bundle of 2.4 % error, and 0.0 in one run with today's."""
