"""The base model of a comparison: the one a bundle was made from, or one of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from sf_bench.training.settings import TrainingBenchSettings
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.errors import UsageError
from sf_contract.manifest import Task
from sf_model.checkpoint import LoadedModel, load_model, open_checkpoint
from sf_server.pieces import choose_dtype

SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    # Llama-3.2-1B's published shape, head tied to the embedding.
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True, slots=True)
class Base:
    """What everyone trains.

    Attributes:
        bundle: None for random weights.
        task, labels, split_layer, hidden, vocabulary: its own.
    """

    settings: TrainingBenchSettings
    bundle: Bundle | None
    task: Task
    labels: tuple[str, ...]
    split_layer: int
    hidden: int
    vocabulary: int

    @property
    def device(self) -> torch.device:
        """Where everyone trains."""
        return torch.device(self.settings.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of everyone's frozen weights."""
        return choose_dtype(self.settings.dtype, self.device)

    def load(self) -> LoadedModel:
        """The whole model, in main memory."""
        if self.bundle is None:
            return _random_model(str(self.settings.random), self.dtype)
        source = self.settings.model or self.bundle.manifest.base_model.name
        checkpoint = open_checkpoint(source, revision=self.bundle.manifest.base_model.revision)
        return load_model(checkpoint, task=self.task, dtype=self.dtype, labels=self.labels, seed=self.settings.seed)

    def about(self) -> str:
        """For the report."""
        name = (
            f"{self.settings.random}, random weights" if self.bundle is None else self.bundle.manifest.base_model.name
        )
        return f"{Path(name).name}, {self.task.value}, cut {self.split_layer}"


def open_base(settings: TrainingBenchSettings) -> Base:
    """What the settings name.

    Raises:
        UsageError: neither a bundle with data nor a random model is named, or both.
        BundleError: the bundle is not whole.
    """
    if (settings.bundle is None) == (settings.random is None) or (settings.bundle is None) != (settings.data is None):
        raise UsageError(
            "what is to be trained must be said in one way",
            cure="give --bundle DIR and --data FILE, or --random llama-1b",
        )
    if settings.random is not None:
        shape = SHAPES[settings.random]
        hidden, vocabulary = int(shape["hidden_size"]), int(shape["vocab_size"])
        return Base(settings, None, Task.CAUSAL_LM, (), settings.split_layer, hidden, vocabulary)
    bundle = open_bundle(Path(str(settings.bundle)))
    spec, geometry = bundle.manifest.task, bundle.manifest.geometry
    return Base(settings, bundle, spec.task, spec.labels, geometry.split_layer, geometry.hidden, geometry.vocabulary)


def _random_model(name: str, dtype: torch.dtype) -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[name])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return LoadedModel(model=model.eval().requires_grad_(False), new_modules=())
