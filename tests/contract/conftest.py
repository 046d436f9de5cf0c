"""A bundle folder without a real graph, for tests that only open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sf_contract.bundle import MANIFEST_FILE, describe_file
from sf_contract.codec import WireCodec
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
    encode_manifest,
)

FILES = {"front.onnx": b"graph" * 100, "tokenizer.json": b"{}", "self_test.f32": bytes(3 * 8 * 4)}


def manifest_of(folder: Path) -> Manifest:
    return Manifest(
        format_version=1,
        base_model=BaseModel(
            name="tiny", revision=None, model_type="tiny", config_sha256="0" * 64, weights_sha256="1" * 64
        ),
        geometry=Geometry(split_layer=1, layers=2, hidden=8, vocabulary=10, max_tokens=16),
        task=TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=("no", "yes")),
        wire_codec=WireCodec.INT8,
        quantization=Quantization(
            requested="none",
            choices=(),
            error=MeasuredError(tokens=3, text="three words", mean=0.01, p99=0.01, worst=0.01),
        ),
        graph_file="front.onnx",
        tokenizer_file="tokenizer.json",
        self_test=SelfTest(token_ids=((1, 2), (3,)), rows_file="self_test.f32", max_mean_error=0.02),
        files=tuple(describe_file(folder / name) for name in sorted(FILES)),
        tools={"python": "3.11"},
    )


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    """A folder that `open_bundle` accepts."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest_of(folder)))
    return folder


@pytest.fixture
def manifest(bundle_folder: Path) -> Manifest:
    """The manifest of that folder."""
    return manifest_of(bundle_folder)


@pytest.fixture
def write_manifest(bundle_folder: Path) -> Callable[[Manifest], None]:
    """Replaces the manifest of that folder."""
    return lambda manifest: (bundle_folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest)) and None
