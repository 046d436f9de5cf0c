"""Fixtures of the exporter's tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from sf_contract.codec import WireCodec
from sf_contract.manifest import (
    FORMAT_VERSION,
    BaseModel,
    BundleFile,
    Geometry,
    Manifest,
    MeasuredError,
    Quantization,
    SelfTest,
    Task,
    TaskSpec,
    Template,
)

SENTENCES = """
the light is on now please
play the music loud in the open window
rain is cold and the sun is warm today
call ann at home now
turn the lamp off and sleep
one two three four five six seven eight nine ten
open the door left please
wake bob early go now
""".strip()


@pytest.fixture
def sentences_file(tmp_path: Path) -> Path:
    """A plain text file to calibrate on."""
    path = tmp_path / "sentences.txt"
    path.write_text(SENTENCES + "\n", encoding="utf-8")
    return path


@pytest.fixture
def small_bundle() -> Callable[..., tuple[Manifest, dict[str, bytes]]]:
    """A consistent manifest and its files, of a few bytes; not a graph anyone can run."""

    def build(graph: bytes = b"graph") -> tuple[Manifest, dict[str, bytes]]:
        files = {"front_end.onnx": graph, "tokenizer.json": b"{}", "selftest.f32": b"\0" * 32}
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            base_model=BaseModel(
                name="m", revision=None, model_type="llama", config_sha256="0" * 64, weights_sha256="1" * 64
            ),
            geometry=Geometry(split_layer=1, layers=2, hidden=8, vocabulary=9, max_tokens=16),
            task=TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=("a", "b")),
            wire_codec=WireCodec.FP32,
            quantization=Quantization(
                requested="none",
                choices=(),
                error=MeasuredError(tokens=1, text="text", mean=0.0, p99=0.0, worst=0.0),
            ),
            graph_file="front_end.onnx",
            tokenizer_file="tokenizer.json",
            self_test=SelfTest(token_ids=((1,),), rows_file="selftest.f32", max_mean_error=0.01),
            files=tuple(
                BundleFile(name=name, nbytes=len(content), sha256=hashlib.sha256(content).hexdigest())
                for name, content in files.items()
            ),
            tools={},
        )
        return manifest, files

    return build
