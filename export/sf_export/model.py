"""The base model as the export needs it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from sf_contract.errors import ModelError, UsageError
from sf_contract.manifest import BaseModel, Task, TaskSpec
from sf_contract.tokenizer import BundleTokenizer
from sf_export.settings import ExportSettings
from sf_model.blocks import check_split_layer
from sf_model.checkpoint import load_model, open_checkpoint, tokenizer_json
from sf_model.config_view import view_config
from sf_model.front import FrontModel

_LANGUAGE_MODEL_ENDINGS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True, eq=False)
class BaseForExport:
    """The whole model in fp32, its tokenizer and its sizes."""

    identity: BaseModel
    model: PreTrainedModel
    tokenizer: BundleTokenizer
    tokenizer_json: bytes
    end_token_id: int | None
    layers: int
    hidden: int
    vocabulary: int

    def check_positions(self, front: FrontModel, max_tokens: int) -> None:
        """Refuse sequences longer than the model's positions reach, by the config and by running one.

        Raises:
            UsageError: `max_tokens` is too large for this model.
        """
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        too_long = isinstance(limit, int) and max_tokens > limit
        if not too_long and _has_position_table(front):
            token_ids = torch.zeros((1, max_tokens), dtype=torch.int64)
            try:
                with torch.no_grad():
                    front(token_ids, torch.ones_like(token_ids))
            except IndexError:  # the table ends earlier than the config says, as RoBERTa's does
                too_long = True
        if too_long:
            raise UsageError(
                f"--max-tokens {max_tokens} is more than the positions of {self.identity.name} reach ({limit})",
                cure="choose a smaller --max-tokens",
            )


def load_base(settings: ExportSettings, spec: TaskSpec, *, say: Callable[[str], None]) -> BaseForExport:
    """Open, check and load the base model; it is read once.

    Raises:
        ModelError: it cannot be found, read, or used for the task.
        SplitLayerError: the cut lies outside the model.
    """
    checkpoint = open_checkpoint(settings.model, revision=settings.revision, say=say)
    view = view_config(checkpoint.config)
    check_split_layer(settings.split_layer, view.layers, checkpoint.identity.name)
    has_head = _has_language_head(checkpoint.config)
    if spec.task is Task.CAUSAL_LM and not has_head:
        raise ModelError(
            f"{checkpoint.identity.name} ({checkpoint.identity.model_type}) has no language-model head",
            cure="choose a causal language model, or --task text-classification",
        )
    raw_tokenizer, end_token_id = tokenizer_json(checkpoint)
    model = load_model(checkpoint, task=Task.CAUSAL_LM if has_head else None, dtype=torch.float32).model
    return BaseForExport(
        identity=checkpoint.identity,
        model=model,
        tokenizer=_tokenizer(raw_tokenizer),
        tokenizer_json=raw_tokenizer,
        end_token_id=end_token_id,
        layers=view.layers,
        hidden=view.hidden,
        vocabulary=view.vocabulary,
    )


def _has_language_head(config: PretrainedConfig) -> bool:
    names = config.architectures or ()
    return any(name.endswith(_LANGUAGE_MODEL_ENDINGS) for name in names)


def _has_position_table(front: FrontModel) -> bool:
    tokens = front.base.get_input_embeddings()
    return any(isinstance(part, nn.Embedding) and part is not tokens for part in front.modules())


def _tokenizer(raw: bytes) -> BundleTokenizer:
    """Opened as a device opens it: from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(raw)
        return BundleTokenizer(path)
