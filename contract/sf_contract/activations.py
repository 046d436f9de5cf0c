"""Samples inside an `ActivationBatch`: packing on the device, checked unpacking on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sf_contract.codec import EncodedRows, WireCodec, row_columns, row_dtype, scale_dtype, scale_groups
from sf_contract.errors import MalformedMessage
from sf_contract.frames import Buffer
from sf_contract.messages import ActivationBatch, Role, SampleHeader

Targets = npt.NDArray[np.int32]

NO_TARGET: Final = -100
"""Marks rows whose next token is not trained on (prompt tokens); the value PyTorch's cross-entropy ignores."""

TARGET_DTYPE: Final = np.dtype("<i4")


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSample:
    """One sample as it travels and as it is stored.

    Attributes:
        ordinal: its number in the device's outbox.
        role: training or validation.
        rows: encoded activations, one row per token.
        label: class index, or None for causal language modelling.
        targets: int32 `[tokens]`: the token each row has to predict, `NO_TARGET` where none; None for classification.
    """

    ordinal: int
    role: Role
    rows: EncodedRows
    label: int | None = None
    targets: Targets | None = None

    @property
    def nbytes(self) -> int:
        """Payload bytes: rows, scales and targets."""
        return self.rows.nbytes + (0 if self.targets is None else int(self.targets.nbytes))


def pack(bundle_id: str, samples: Sequence[EncodedSample]) -> tuple[ActivationBatch, tuple[Buffer, ...]]:
    """The message and buffers of a batch; all samples come from one bundle."""
    headers = tuple(SampleHeader(ordinal=s.ordinal, tokens=s.rows.tokens, role=s.role, label=s.label) for s in samples)
    buffers = pack_rows([s.rows for s in samples])
    targets = [s.targets for s in samples if s.targets is not None]
    if targets:
        buffers = (*buffers, np.concatenate(targets))
    return ActivationBatch(bundle_id=bundle_id, samples=headers), buffers


def pack_rows(texts: Sequence[EncodedRows]) -> tuple[Buffer, ...]:
    """Rows of several texts as the buffers `rows` and, where the codec has them, `scales`."""
    rows: Buffer = np.concatenate([text.rows for text in texts])
    if not texts[0].scales.shape[1]:
        return (rows,)
    return rows, np.concatenate([text.scales for text in texts])


def sample_frame_bytes(codec: WireCodec, *, hidden: int, tokens: int) -> tuple[int, int, int]:
    """Bytes of rows, scales and targets of a sample with so many tokens."""
    rows = tokens * row_columns(codec, hidden) * row_dtype(codec).itemsize
    scales = tokens * scale_groups(codec, hidden) * scale_dtype(codec).itemsize
    return rows, scales, tokens * TARGET_DTYPE.itemsize


def unpack(
    batch: ActivationBatch, buffers: Sequence[Buffer], *, codec: WireCodec, hidden: int, with_targets: bool
) -> list[EncodedSample]:
    """The samples of a batch, as views of its buffers.

    Raises:
        MalformedMessage: the buffers do not fit the header, the codec or the hidden size.
    """
    rows, others = _checked_rows([sample.tokens for sample in batch.samples], buffers, codec, hidden, with_targets)
    targets = others[0].astype(np.int32, copy=False) if with_targets else None
    return _split(batch.samples, rows, targets)


def unpack_rows(
    tokens: Sequence[int], buffers: Sequence[Buffer], *, codec: WireCodec, hidden: int
) -> list[EncodedRows]:
    """Rows of texts with so many tokens each, as views of the buffers.

    Raises:
        MalformedMessage: the buffers do not fit the lengths, the codec or the hidden size.
    """
    packed, _ = _checked_rows(tokens, buffers, codec, hidden, with_targets=False)
    stops = np.cumsum(tokens).tolist()
    return [packed.part(stop - length, stop) for stop, length in zip(stops, tokens, strict=True)]


def _checked_rows(
    lengths: Sequence[int], buffers: Sequence[Buffer], codec: WireCodec, hidden: int, with_targets: bool
) -> tuple[EncodedRows, Sequence[Buffer]]:
    """The rows, and the buffers behind them."""
    tokens = sum(lengths)
    groups = scale_groups(codec, hidden)
    expected: list[tuple[str, np.dtype[np.generic], tuple[int, ...]]] = [
        ("rows", row_dtype(codec), (tokens, row_columns(codec, hidden)))
    ]
    if groups:
        expected.append(("scales", scale_dtype(codec), (tokens, groups)))
    if with_targets:
        expected.append(("targets", TARGET_DTYPE, (tokens,)))
    if len(buffers) != len(expected):
        names = ", ".join(name for name, _, _ in expected)
        raise MalformedMessage(f"batch has {len(buffers)} buffers; this bundle needs {len(expected)}: {names}")
    for buffer, (name, dtype, shape) in zip(buffers, expected, strict=True):
        if buffer.dtype != dtype or buffer.shape != shape:
            raise MalformedMessage(
                f"{name} are {buffer.dtype.name} {list(buffer.shape)}; this batch needs {dtype.name} {list(shape)}"
            )
    scales = buffers[1] if groups else np.zeros((tokens, 0), dtype=np.float32)
    return EncodedRows(codec=codec, rows=buffers[0], scales=scales), buffers[2 if groups else 1 :]


def _split(headers: Sequence[SampleHeader], packed: EncodedRows, targets: Targets | None) -> list[EncodedSample]:
    samples: list[EncodedSample] = []
    start = 0
    for header in headers:
        stop = start + header.tokens
        samples.append(
            EncodedSample(
                ordinal=header.ordinal,
                role=header.role,
                rows=packed.part(start, stop),
                label=header.label,
                targets=None if targets is None else targets[start:stop],
            )
        )
        start = stop
    return samples
