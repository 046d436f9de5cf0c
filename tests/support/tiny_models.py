"""Tiny random checkpoints of real architectures, with a tokenizer, as folders that `from_pretrained` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = """
the a is on off light lamp music play stop now please red blue cold warm rain sun call text ann bob go home
left right one two three four five six seven eight nine ten wake sleep early late loud soft door window open
close
""".split()  # noqa: SIM905
SPECIAL = ["<pad>", "<unk>", "<end>"]
VOCABULARY = 64
LAYERS = 4
HIDDEN = 72
"""Not a multiple of 64, so that the last scale group is short."""

WINDOW = 5
"""Tokens that a layer with a sliding window sees, where a family has such layers."""

_DECODER = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_ENCODER = {
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
}
_GEMMA = _DECODER | {
    "head_dim": 18,
    "query_pre_attn_scalar": 18,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}
_SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": LAYERS, "n_embd": HIDDEN, "n_head": 4, "n_positions": 96},
    "llama": _DECODER,
    "qwen2": _DECODER,
    "bert": _ENCODER,
    "bloom": {"n_layer": LAYERS, "hidden_size": HIDDEN, "n_head": 6},
    "deberta-v2": _ENCODER
    | {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "distilbert": {"n_layers": LAYERS, "dim": HIDDEN, "hidden_dim": 96, "n_heads": 4, "max_position_embeddings": 96},
    "electra": _ENCODER | {"embedding_size": 48},
    "gemma2": _GEMMA | {"attn_logit_softcapping": 2.0},
    "gemma3_text": _GEMMA,
    "gpt_neox": _ENCODER,
    "granite": _DECODER
    | {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.05, "logits_scaling": 8.0},
    "mistral": _DECODER | {"sliding_window": WINDOW},
    "modernbert": _ENCODER | {"local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2},
    "olmo2": _DECODER,
    "opt": {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": 48,
        "ffn_dim": 96,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
    },
    "phi3": _DECODER | {"sliding_window": WINDOW},
    "qwen3": _DECODER | {"head_dim": 20},
    "roberta": _ENCODER,
    "smollm3": _DECODER | {"no_rope_layers": [1, 0] * (LAYERS // 2)},
}
FAMILIES = ("gpt2", "llama", "qwen2", "bert")
"""What most tests run on; tests/parity/test_families.py runs on all."""

DECODERS = tuple(name for name in FAMILIES if name != "bert")


def tiny_config(family: str) -> PretrainedConfig:
    """A config of `LAYERS` layers without dropout."""
    config: PretrainedConfig = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=2, eos_token_id=2, **_SHAPES[family]
    )
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """Move every parameter, norms and biases too, so that nothing cancels."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.05))
    return model


def save_tiny_model(family: str, folder: Path) -> Path:
    """Write a checkpoint of `LAYERS` random layers, with its tokenizer."""
    config = tiny_config(family)
    torch.manual_seed(5)
    kind = AutoModelForCausalLM if family in DECODERS else AutoModelForMaskedLM
    randomize(kind.from_config(config)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `WORDS`."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", bos_token="<end>"
    )
