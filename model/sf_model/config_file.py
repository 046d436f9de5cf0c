"""Opening a model folder's `config.json`: known architectures only, and never code from the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from sf_contract import limits
from sf_contract.errors import ModelError

CONFIG_FILE: Final = "config.json"
_MAX_CONFIG_BYTES: Final = 16 * limits.MIB


class _Config(msgspec.Struct, frozen=True):
    """What is looked at before Transformers reads the rest."""

    model_type: str
    auto_map: object = None
    quantization_config: dict[str, object] | None = None


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a model folder.

    Raises:
        ModelError: it is missing, no config, of an unknown architecture, of one that brings its own program code, or
            describes quantized weights.
    """
    found = _looked_at(folder)
    if found.model_type not in CONFIG_MAPPING:
        raise _unknown(folder, found)
    if found.quantization_config is not None:
        method = found.quantization_config.get("quant_method", "an unnamed method")
        raise ModelError(
            f"the weights in {folder} are quantized ({method})", cure="give the original model in bf16, fp16 or fp32"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)  # type: ignore[no-any-return]
    except Exception as problem:  # transformers and the hub client raise many kinds for values that do not fit
        raise ModelError(
            f"{folder / CONFIG_FILE} is not a config of {found.model_type}: {_joined(problem)}",
            cure="fetch config.json again, from the model's own source",
        ) from problem


def _looked_at(folder: Path) -> _Config:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no {CONFIG_FILE}",
            cure="give a folder with config.json, *.safetensors and tokenizer.json",
        )
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ModelError(
            f"{path} has {path.stat().st_size:,} bytes, more than a config can have", cure="fetch it again"
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Config)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ModelError(
            f"{path} is not a Transformers config: {_joined(problem)}", cure="fetch config.json again"
        ) from problem


def _unknown(folder: Path, found: _Config) -> ModelError:
    if found.auto_map is not None:
        return ModelError(
            f"{folder} needs program code of its own (architecture {found.model_type!r}), which is never run here",
            cure="choose a model whose architecture is part of Transformers",
        )
    return ModelError(
        f"{folder / CONFIG_FILE} names the architecture {found.model_type!r}, which the installed Transformers "
        "does not know",
        cure="choose another model, or install a version of Transformers that knows it",
    )


def _joined(problem: Exception) -> str:
    return " ".join(str(problem).split()) or type(problem).__name__
