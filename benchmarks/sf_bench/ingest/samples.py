"""Samples made out of nothing for a bundle made out of nothing: receiving runs neither graph nor tokenizer."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from sf_contract.activations import EncodedSample
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.codec import WireCodec, bytes_per_token, encode_rows
from sf_contract.frames import Buffer
from sf_contract.manifest import (
    BaseModel,
    Geometry,
    Manifest,
    MeasuredError,
    Quantization,
    SelfTest,
    Task,
    TaskSpec,
    Template,
)
from sf_contract.messages import ActivationBatch, Role, SampleHeader
from sf_export.bundle_writer import describe_bytes, write_bundle

CODEC = WireCodec.INT8


class SampleShape(msgspec.Struct, frozen=True, order=True):
    """Every sample has so many tokens of so many channels, in int8."""

    hidden: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.hidden}x{self.tokens}"

    @property
    def nbytes(self) -> int:
        """Payload bytes of a sample: rows and scales."""
        return self.tokens * bytes_per_token(CODEC, self.hidden)


class Supply:
    """Batches of equal samples; the rows are made once, a batch is a view of them with its own ordinals.

    Args:
        most: samples of the largest batch.
    """

    def __init__(self, shape: SampleShape, *, bundle_id: str, most: int) -> None:
        self.shape = shape
        self.bundle_id = bundle_id
        floats = np.random.default_rng(0).normal(size=(most * shape.tokens, shape.hidden)).astype(np.float32)
        self._encoded = encode_rows(floats, CODEC)

    def batch(self, ordinals: tuple[int, ...]) -> tuple[ActivationBatch, tuple[Buffer, ...]]:
        """The message and buffers of a batch."""
        headers = tuple(
            SampleHeader(ordinal=ordinal, tokens=self.shape.tokens, role=Role.TRAIN, label=ordinal % 2)
            for ordinal in ordinals
        )
        part = self._encoded.part(0, len(ordinals) * self.shape.tokens)
        return ActivationBatch(bundle_id=self.bundle_id, samples=headers), (part.rows, part.scales)

    def samples(self, ordinals: range) -> list[EncodedSample]:
        """The same as samples, for a store without a network before it."""
        rows = self._encoded.part(0, self.shape.tokens)
        return [EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows, label=ordinal % 2) for ordinal in ordinals]


def write_synthetic_bundle(folder: Path, shape: SampleShape) -> Bundle:
    """A bundle whose manifest passes every check, with a few bytes where the graph and the tokenizer would be."""
    files = {"front_end.onnx": b"none", "tokenizer.json": b"{}", "selftest.f32": bytes(4 * shape.hidden)}
    write_bundle(folder, synthetic_manifest(shape, files), files)
    return open_bundle(folder)


def synthetic_manifest(shape: SampleShape, files: dict[str, bytes]) -> Manifest:
    """A manifest that passes every check and describes these files; its model does not exist."""
    return Manifest(
        format_version=1,
        base_model=BaseModel(
            name="synthetic", revision=None, model_type="synthetic", config_sha256="0" * 64, weights_sha256="1" * 64
        ),
        geometry=Geometry(split_layer=1, layers=2, hidden=shape.hidden, vocabulary=2, max_tokens=shape.tokens),
        task=TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=("no", "yes")),
        wire_codec=CODEC,
        quantization=Quantization(
            requested="none", choices=(), error=MeasuredError(tokens=1, text="none", mean=0.0, p99=0.0, worst=0.0)
        ),
        graph_file="front_end.onnx",
        tokenizer_file="tokenizer.json",
        self_test=SelfTest(token_ids=((1,),), rows_file="selftest.f32", max_mean_error=0.05),
        files=tuple(describe_bytes(name, content) for name, content in files.items()),
        tools={},
    )
