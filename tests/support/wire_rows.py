"""Rows and codec parameters for tests of the wire: like real hidden states in what the codecs care about."""

from __future__ import annotations

import numpy as np

from sf_contract.codec import FloatRows, WireCodec
from sf_contract.int4 import Int4Parameters, calibrate


def model_like_rows(tokens: int, hidden: int, *, seed: int = 5) -> FloatRows:
    """A large common part, channels of unlike spread, and one channel that is massive in every 16th row."""
    shared = np.random.default_rng(7)
    mean, spread = shared.normal(size=hidden), np.exp(0.5 * shared.normal(size=hidden))
    rows = mean + spread * np.random.default_rng(seed).normal(size=(tokens, hidden))
    rows[::16, 507 % hidden] += 100 * spread[507 % hidden]
    return rows.astype(np.float32)


def int4_for(codec: WireCodec, hidden: int) -> Int4Parameters | None:
    """What a codec needs besides rows: parameters calibrated on `model_like_rows` for int4, nothing for others."""
    return calibrate(model_like_rows(512, hidden, seed=1)) if codec is WireCodec.INT4 else None
