"""The one door to `optimum`: a config seen without knowing its family, and the class that belongs to a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedConfigManager, NormalizedTextConfig
from transformers import PretrainedConfig, PreTrainedModel

from sf_contract.errors import ModelError
from sf_contract.manifest import Task

FAMILIES_CURE: Final = "choose another model; sf-export families lists architectures that work"
_EXPERT_COUNTS: Final = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_OPTIMUM_TASKS: Final = {Task.CAUSAL_LM: "text-generation", Task.TEXT_CLASSIFICATION: "text-classification"}


@dataclass(frozen=True, slots=True)
class ConfigView:
    """Sizes of a model: number of layers, hidden channels, vocabulary entries."""

    layers: int
    hidden: int
    vocabulary: int


def view_config(config: PretrainedConfig) -> ConfigView:
    """The sizes of a text model's config.

    Raises:
        ModelError: it is of a kind that cannot be cut, or names no layers, hidden size or vocabulary.
    """
    text = config.get_text_config()
    reason = _reason_against(text)
    if reason is not None:
        raise ModelError(f"{text.model_type} {reason}", cure=FAMILIES_CURE)
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


def check_task_class(config: PretrainedConfig, task: Task) -> None:
    """Refuse a task that Transformers has no class for, before anything is loaded.

    Raises:
        ModelError: naming the task that there is a class for, if any.
    """
    if _has_class(config, task):
        return
    others = [f"--task {other.value}" for other in Task if _has_class(config, other)]
    raise ModelError(
        f"Transformers has no class that uses {config.model_type} for {task.value}",
        cure=" or ".join(["choose another model", *others]),
    )


def model_class(task: Task | None) -> type[PreTrainedModel]:
    """The Auto class for a task; without one, the class of the bare base model."""
    name = "feature-extraction" if task is None else _OPTIMUM_TASKS[task]
    return TasksManager.get_model_class_for_task(name, library="transformers")  # type: ignore[no-any-return]


def position_limit(config: PretrainedConfig) -> int | None:
    """Longest sequence, in tokens, whose positions the model knows and computes in one way; None when nothing is said.

    LongRoPE takes other frequencies for a batch whose longest sequence is longer than the original context.
    """
    text = config.get_text_config()
    rotary = getattr(text, "rope_parameters", None) or {}
    of_layer_types = [part for part in rotary.values() if isinstance(part, dict)]
    original = [
        part.get("original_max_position_embeddings")
        for part in (of_layer_types or [rotary])
        if part.get("rope_type") == "longrope"
    ]
    limits = (getattr(text, "max_position_embeddings", None), *original)
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def _reason_against(config: PretrainedConfig) -> str | None:
    """Why a model of this config cannot be cut, as far as the config tells; completes a sentence that begins with it."""
    if config.is_encoder_decoder:
        return (
            "is an encoder-decoder: its decoder layers read the encoder's last layer, "
            "so no cut leaves a front that runs alone"
        )
    if _is_recurrent(config):
        return (
            "is recurrent: it carries a state from token to token, in as many steps as there are tokens, "
            "and the graph of a front end has no loop"
        )
    if any((getattr(config, name, None) or 0) > 1 for name in _EXPERT_COUNTS):
        return "is a mixture of experts, which PyTorch's exporter cannot express as an ONNX graph"
    if getattr(config, "attention_type", None) == "block_sparse":
        return "takes another kind of attention for long sequences (block_sparse), and a graph holds only one"
    return None


def _is_recurrent(config: PretrainedConfig) -> bool:
    """Transformers marks every class whose layers keep a state that only running over the tokens can give."""
    auto: Any = model_class(None)
    kind = auto._model_mapping.get(type(config), None)
    return bool(getattr(kind, "_is_stateful", False))


def _has_class(config: PretrainedConfig, task: Task) -> bool:
    auto: Any = model_class(task)
    return type(config) in auto._model_mapping
