"""The one door to `optimum`: a config seen without knowing its family, and the class that belongs to a task."""

from __future__ import annotations

from dataclasses import dataclass

from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedConfigManager, NormalizedTextConfig
from transformers import PretrainedConfig, PreTrainedModel

from sf_contract.errors import ModelError
from sf_contract.manifest import Task

_OPTIMUM_TASKS = {Task.CAUSAL_LM: "text-generation", Task.TEXT_CLASSIFICATION: "text-classification"}


@dataclass(frozen=True, slots=True)
class ConfigView:
    """Sizes of a model: number of layers, hidden channels, vocabulary entries."""

    layers: int
    hidden: int
    vocabulary: int


def view_config(config: PretrainedConfig) -> ConfigView:
    """The sizes of a text model's config.

    Raises:
        ModelError: it is an encoder-decoder, or names no layers, hidden size or vocabulary.
    """
    text = config.get_text_config()
    if text.is_encoder_decoder:
        raise ModelError(
            f"{text.model_type} is an encoder-decoder: its decoder layers read the encoder's last layer, "
            "so no cut leaves a front that runs alone",
            cure="choose a decoder-only or encoder-only model",
        )
    try:
        kind = NormalizedConfigManager.get_normalized_config_class(text.model_type)
    except KeyError:
        kind = NormalizedTextConfig
    try:
        view = kind(text)
        return ConfigView(layers=view.num_layers, hidden=view.hidden_size, vocabulary=view.vocab_size)
    except AttributeError as problem:
        raise ModelError(
            f"the config of {text.model_type} does not describe a text model: {problem}",
            cure="choose a model that AutoModelForCausalLM or AutoModelForSequenceClassification can load",
        ) from problem


def model_class(task: Task | None) -> type[PreTrainedModel]:
    """The Auto class for a task; without one, the class of the bare base model."""
    name = "feature-extraction" if task is None else _OPTIMUM_TASKS[task]
    return TasksManager.get_model_class_for_task(name, library="transformers")  # type: ignore[no-any-return]
