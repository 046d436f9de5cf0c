"""The base model as the export needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from sf_contract.errors import BundleError, ModelError, UsageError
from sf_contract.manifest import BaseModel, Task, TaskSpec
from sf_contract.tokenizer import BundleTokenizer
from sf_export.settings import ExportSettings
from sf_model.blocks import check_split_layer
from sf_model.checkpoint import open_checkpoint, tokenizer_json
from sf_model.config_view import check_task_class, position_limit, view_config
from sf_model.front import FrontModel, cut_front
from sf_model.pairs import pair_separator, pair_template, tell_segments
from sf_model.precision import WHOLE_BELOW_BYTES, free_buffers, held_in_fp32, load_exact
from sf_model.probe import check_cut

_LANGUAGE_MODEL_ENDINGS = ("ForCausalLM", "LMHeadModel")


class HeldModel:
    """A model that is opened again when it is needed: while a graph is made of its front end, it need not be there.

    Args:
        load: opens the model.
        worth_it: whether letting go frees enough to open it again.
    """

    def __init__(self, load: Callable[[], PreTrainedModel], *, worth_it: bool) -> None:
        self._load = load
        self._worth_it = worth_it
        self._model: PreTrainedModel | None = load()

    def model(self) -> PreTrainedModel:
        """The model, opened when it is not."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def let_go(self) -> None:
        """Forget the model where that is worth it."""
        if self._worth_it:
            self._model = None


@dataclass(frozen=True, slots=True, eq=False)
class BaseForExport:
    """The whole model, its tokenizer and its sizes; it serves any number of cuts.

    Attributes:
        held: the model, as long as it is needed.
        template: how a record becomes the (prompt's) text, pairs joined as this model's tokenizer joins them.
    """

    identity: BaseModel
    template: str
    held: HeldModel
    tokenizer: BundleTokenizer
    tokenizer_json: bytes
    end_token_id: int | None
    layers: int
    hidden: int
    vocabulary: int

    @property
    def model(self) -> PreTrainedModel:
        """The model; it computes in fp32 throughout, whatever its weights are held in, which are best left alone."""
        return self.held.model()

    def front(self, split_layer: int) -> FrontModel:
        """Embedding and first `split_layer` layers, a copy with fp32 weights of its own.

        Raises:
            SplitLayerError, ModelError: as `cut_front` does.
        """
        model = self.model
        free_buffers(model)
        front = cut_front(model, split_layer)
        free_buffers(model)
        held_in_fp32(front)
        return front

    def check_cut(self, split_layer: int) -> None:
        """Refuse a cut whose two sides together do not compute what the whole model computes.

        Raises:
            SplitLayerError, ModelError: as `sf_model.probe.check_cut` does.
        """
        check_cut(self.model, split_layer)
        free_buffers(self.model)

    def free_memory(self) -> None:
        """Let go of the model until it is asked for again; whoever calls this keeps no reference to it."""
        self.held.let_go()

    def check_positions(self, front: FrontModel, max_tokens: int) -> None:
        """Refuse sequences longer than the model's positions reach, by the config and by running one.

        Raises:
            UsageError: `max_tokens` is too large for this model.
        """
        limit = position_limit(self.model.config)
        too_long = limit is not None and max_tokens > limit
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


def load_base(
    settings: ExportSettings, spec: TaskSpec, *, split_layers: Sequence[int] = (), say: Callable[[str], None]
) -> BaseForExport:
    """Open, check and load the base model; it is read once, for all cuts.

    Args:
        split_layers: the cuts that will be made, checked before the weights are loaded.
        say: told about work that takes long.

    Raises:
        ModelError: it cannot be found, read, or used for the task.
        SplitLayerError: a cut lies outside the model.
    """
    checkpoint = open_checkpoint(settings.model, revision=settings.revision, say=say)
    view = view_config(checkpoint.config)
    check_task_class(checkpoint.config, spec.task)
    for split_layer in split_layers:
        check_split_layer(split_layer, view.layers, checkpoint.identity.name)
    has_head = _has_language_head(checkpoint.config)
    if spec.task is Task.CAUSAL_LM and not has_head:
        raise ModelError(
            f"{checkpoint.identity.name} ({checkpoint.identity.model_type}) has no language-model head",
            cure="choose a causal language model, or --task text-classification",
        )
    raw_tokenizer, end_token_id = tokenizer_json(checkpoint)
    template = spec.template.prompt
    if settings.text_pair is not None:
        template = pair_template(checkpoint, (settings.text_pair[0], settings.text_pair[1]))
    separator = pair_separator(checkpoint, template)
    task = Task.CAUSAL_LM if has_head else None

    def load() -> PreTrainedModel:
        model = load_exact(checkpoint, task=task, say=say)
        tell_segments(model, separator)
        return model

    held = HeldModel(
        load,
        worth_it=checkpoint.weights.nbytes >= WHOLE_BELOW_BYTES,
    )
    return BaseForExport(
        identity=checkpoint.identity,
        template=template,
        held=held,
        tokenizer=_tokenizer(raw_tokenizer, checkpoint.identity.name, view.vocabulary),
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


def _tokenizer(raw: bytes, name: str, vocabulary: int) -> BundleTokenizer:
    """Opened as a device opens it."""
    try:
        return BundleTokenizer(raw, vocabulary=vocabulary, where=f"the tokenizer of {name}")
    except BundleError as problem:
        raise ModelError(problem.what, cure="give a checkpoint whose tokenizer is the model's own") from problem
