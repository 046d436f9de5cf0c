"""A real bundle of a few kilobytes, made without PyTorch: its front end looks words up. And ways to change it consistently."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from sf_contract.bundle import CHECKSUM_FILE, MANIFEST_FILE, checksum_line
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
from sf_export.bundle_writer import describe_bytes, write_bundle

WORDS: Final = ("[UNK]", "turn", "play", "the", "lights", "music", "on", "off")
HIDDEN: Final = 6
TOKEN_IDS: Final = ((1, 3, 4, 7), (2, 3, 5))
GRAPH, TOKENIZER, VECTORS = "front_end.onnx", "tokenizer.json", "selftest.f32"


def embedding_table() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Word vectors `[words, HIDDEN]`."""
    return np.random.default_rng(3).normal(size=(len(WORDS), HIDDEN)).astype(np.float32)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """One node with one output."""
    return helper.make_node(kind, list(inputs), [output], **attributes)


def constant(name: str, values: object, dtype: type) -> onnx.TensorProto:
    """A weight."""
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    """An input or output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def front_end_model(
    *,
    before_rows: Sequence[onnx.NodeProto] = (),
    rows_from: str = "packed",
    rows_kind: int = TensorProto.FLOAT,
    rows_shape: Sequence[int | str] = ("rows", HIDDEN),
    weights: Sequence[onnx.TensorProto] = (),
    more_inputs: Sequence[onnx.ValueInfoProto] = (),
    more_outputs: Sequence[onnx.ValueInfoProto] = (),
    ids_kind: int = TensorProto.INT64,
) -> onnx.ModelProto:
    """The front end, with what is asked for put between its packed rows and the output `rows`."""
    graph = helper.make_graph(
        [
            node("Gather", ["table", "input_ids"], "embedded"),
            node("Reshape", ["embedded", "flat"], "all_rows"),
            node("Gather", ["all_rows", "row_index"], "packed"),
            *before_rows,
            node("Identity", [rows_from], "rows"),
        ],
        "front_end",
        [
            value("input_ids", ids_kind, ["batch", "tokens"]),
            value("attention_mask", TensorProto.INT64, ["batch", "tokens"]),
            value("row_index", TensorProto.INT64, ["rows"]),
            *more_inputs,
        ],
        [value("rows", rows_kind, rows_shape), *more_outputs],
        [constant("table", embedding_table(), np.float32), constant("flat", [-1, HIDDEN], np.int64), *weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def tokenizer_bytes(words: Sequence[str] = WORDS) -> bytes:
    """One token per word."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def tiny_files(**replaced: bytes) -> dict[str, bytes]:
    """Contents of the bundle's files; `graph`, `tokenizer` and `vectors` replace one."""
    rows = embedding_table()[[i for ids in TOKEN_IDS for i in ids]]
    return {
        GRAPH: replaced.get("graph", front_end_model().SerializeToString()),
        TOKENIZER: replaced.get("tokenizer", tokenizer_bytes()),
        VECTORS: replaced.get("vectors", rows.astype("<f4").tobytes()),
    }


def tiny_manifest(files: Mapping[str, bytes], *, name: str = "tiny") -> Manifest:
    """The manifest of these files."""
    return Manifest(
        format_version=1,
        base_model=BaseModel(
            name=name, revision=None, model_type="tiny", config_sha256="0" * 64, weights_sha256="1" * 64
        ),
        geometry=Geometry(split_layer=1, layers=2, hidden=HIDDEN, vocabulary=len(WORDS), max_tokens=16),
        task=TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=("lights", "music")),
        wire_codec=WireCodec.FP32,
        quantization=Quantization(
            requested="none",
            choices=(),
            error=MeasuredError(tokens=7, text="seven words", mean=0.0, p99=0.0, worst=0.0),
        ),
        graph_file=GRAPH,
        tokenizer_file=TOKENIZER,
        self_test=SelfTest(token_ids=TOKEN_IDS, rows_file=VECTORS, max_mean_error=0.01),
        files=tuple(describe_bytes(name, content) for name, content in files.items()),
        tools={"splitfrozen": "0"},
    )


def write_tiny_bundle(folder: Path, *, name: str = "tiny") -> Path:
    """A whole bundle that passes every check."""
    files = tiny_files()
    write_bundle(folder, tiny_manifest(files, name=name), files)
    return folder


def replace_files(folder: Path, **replaced: bytes) -> None:
    """Other contents (`graph`, `tokenizer`, `vectors`), with a manifest that describes them truly."""
    files = tiny_files(**replaced)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    replace_manifest(folder, encode_manifest(tiny_manifest(files)))


def replace_manifest(folder: Path, raw: bytes) -> None:
    """Any bytes as the manifest, and the checksum that belongs to them."""
    (folder / MANIFEST_FILE).write_bytes(raw)
    (folder / CHECKSUM_FILE).write_bytes(checksum_line(hashlib.sha256(raw).hexdigest()))


def manifest_fields(folder: Path) -> dict[str, Any]:
    """The manifest as plain dictionaries and lists."""
    fields: dict[str, Any] = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes())
    return fields


def canonical(fields: Mapping[str, Any]) -> bytes:
    """Fields as canonical JSON."""
    return msgspec.json.encode(fields, order="sorted")
