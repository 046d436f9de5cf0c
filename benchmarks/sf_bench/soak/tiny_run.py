"""A run made out of nothing: a tiny random Llama checkpoint and a bundle whose manifest belongs to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from safetensors.numpy import save_file

from sf_bench.ingest.samples import SampleShape, synthetic_manifest
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.manifest import Geometry
from sf_export.bundle_writer import write_bundle
from sf_model.checkpoint import open_checkpoint

HIDDEN: Final = 256
LENGTHS: Final = (16, 24, 32, 48, 64)
"""Tokens of the devices' samples: unlike lengths, as real texts have, so that batches differ in shape."""

_VOCABULARY: Final = 64
_LAYERS: Final = 3
_CUT: Final = 1
_CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, slots=True)
class TinyRun:
    """Checkpoint folder and bundle."""

    model: Path
    bundle: Bundle


def write_tiny_run(folder: Path) -> TinyRun:
    """Write both below a folder."""
    model = _write_checkpoint(folder / "model")
    base = open_checkpoint(str(model)).identity
    files = {"front_end.onnx": b"none", "tokenizer.json": b"{}", "selftest.f32": bytes(4 * HIDDEN)}
    manifest = synthetic_manifest(SampleShape(hidden=HIDDEN, tokens=max(LENGTHS)), files)
    geometry = Geometry(
        split_layer=_CUT, layers=_LAYERS, hidden=HIDDEN, vocabulary=_VOCABULARY, max_tokens=max(LENGTHS)
    )
    write_bundle(folder / "bundle", msgspec.structs.replace(manifest, base_model=base, geometry=geometry), files)
    return TinyRun(model=model, bundle=open_bundle(folder / "bundle"))


def _write_checkpoint(folder: Path) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        drawn = generator.standard_normal(shape, dtype=np.float32)
        drawn /= np.float32(shape[-1] ** 0.5)
        return drawn

    ones, half = np.ones(HIDDEN, dtype=np.float32), HIDDEN // 2
    tensors = {"model.embed_tokens.weight": random(_VOCABULARY, HIDDEN), "model.norm.weight": ones}
    for layer in range(_LAYERS):
        shapes = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (half, HIDDEN),
            "self_attn.v_proj": (half, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (2 * HIDDEN, HIDDEN),
            "mlp.up_proj": (2 * HIDDEN, HIDDEN),
            "mlp.down_proj": (HIDDEN, 2 * HIDDEN),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        tensors |= {f"model.layers.{layer}.{name}_layernorm.weight": ones for name in ("input", "post_attention")}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    return folder
