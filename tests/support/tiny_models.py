"""Tiny random checkpoints of real architectures, with a tokenizer, as folders that `from_pretrained` opens."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

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

_SHAPES: dict[str, dict[str, object]] = {
    "gpt2": {"n_layer": LAYERS, "n_embd": HIDDEN, "n_head": 4, "n_positions": 96},
    "llama": {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2},
    "bert": {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
    },
}
FAMILIES = tuple(_SHAPES)
DECODERS = tuple(name for name in FAMILIES if name != "bert")


def save_tiny_model(family: str, folder: Path) -> Path:
    """Write a checkpoint of `LAYERS` random layers; norms and biases are random too, so that nothing cancels."""
    sizes = dict(_SHAPES[family])
    if family != "gpt2":
        sizes["intermediate_size"] = 96
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=2, eos_token_id=2, **_no_dropout(family), **sizes
    )
    torch.manual_seed(5)
    kind = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.05))
    model.save_pretrained(folder)
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


def _no_dropout(family: str) -> dict[str, object]:
    if family == "gpt2":
        return {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if family == "bert":
        return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {}
