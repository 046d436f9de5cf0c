"""A GGUF file with the first layers of another one. The one door to `gguf` for writing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

from sf_contract.errors import ModelError

AS_IS: Final = "as-is"
_BLOCK: Final = re.compile(r"^blk\.(\d+)\.")
_FINAL_NORM: Final = "output_norm.weight"
_EMBEDDING_TYPE: Final = gguf.GGMLQuantizationType.Q8_0
_TABLES: Final = ("token_embd.weight", "output.weight")


def layer_count(source: Path) -> int:
    """Layers of a GGUF model.

    Raises:
        ModelError: the file is no GGUF model.
    """
    reader = _read(source)
    return int(_field(reader, f"{_architecture(reader)}.block_count"))


def write_layers(source: Path, target: Path, *, layers: int, quantization: str) -> None:
    """Write the embedding, the first `layers` layers, a final norm of weight one, and the head.

    Args:
        source: a GGUF model.
        target: the file to write.
        layers: layers to keep.
        quantization: `as-is`, or the type of all matrices of the layers, such as `q8_0`; embedding and head become Q8_0
            then, and matrices whose rows are no multiple of the block become F16, as llama.cpp's own tool does it.

    Raises:
        ModelError: the file is no GGUF model, or has fewer layers.
    """
    reader = _read(source)
    architecture = _architecture(reader)
    total = int(_field(reader, f"{architecture}.block_count"))
    if not 1 <= layers <= total:
        raise ModelError(f"{source} has {total} layers, not {layers}", cure="use a cut that the model has")
    writer = gguf.GGUFWriter(target, architecture)
    _copy_fields(reader, writer, architecture, layers=layers, total=total)
    for tensor in reader.tensors:
        block = _BLOCK.match(tensor.name)
        if block is None or int(block[1]) < layers:
            _copy_tensor(writer, tensor, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read(source: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(source)
    except (OSError, ValueError, IndexError, KeyError) as problem:
        raise ModelError(f"{source} is not a GGUF model: {problem}", cure="give a complete .gguf file") from problem


def _architecture(reader: gguf.GGUFReader) -> str:
    return str(_field(reader, "general.architecture"))


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ModelError(f"the GGUF file has no {key}", cure="give the file of a language model")
    return field.contents()


def _copy_fields(
    reader: gguf.GGUFReader, writer: gguf.GGUFWriter, architecture: str, *, layers: int, total: int
) -> None:
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value: Any = field.contents()
        if key == f"{architecture}.block_count":
            value = layers
        elif key.startswith(f"{architecture}.") and isinstance(value, list) and len(value) == total:
            value = value[:layers]
        sub_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(key, value, field.types[0], sub_type)


def _copy_tensor(writer: gguf.GGUFWriter, tensor: Any, quantization: str) -> None:
    kind: gguf.GGMLQuantizationType = tensor.tensor_type
    if tensor.name == _FINAL_NORM:
        writer.add_tensor(tensor.name, np.ones(tensor.data.shape, dtype=np.float32))
        return
    wanted = kind if quantization == AS_IS else _wanted_type(tensor, quantization)
    content = tensor.data
    if wanted != kind:
        content = gguf.quants.quantize(gguf.quants.dequantize(tensor.data, kind), wanted)
    writer.add_tensor(tensor.name, content, raw_dtype=wanted)


def _wanted_type(tensor: Any, quantization: str) -> gguf.GGMLQuantizationType:
    if len(tensor.shape) == 1:
        kind: gguf.GGMLQuantizationType = tensor.tensor_type
        return kind
    wanted = _EMBEDDING_TYPE if tensor.name in _TABLES else gguf.GGMLQuantizationType[quantization.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if int(tensor.shape[0]) % block == 0 else gguf.GGMLQuantizationType.F16
