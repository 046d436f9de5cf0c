"""The one door to PEFT: put LoRA on a back end, read and write adapters that load in plain PEFT."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sf_contract.errors import MismatchError, UsageError
from sf_contract.manifest import Task
from sf_model.back import Segment

ADAPTER_WEIGHTS_FILE: Final = "adapter_model.safetensors"
_TASK_TYPES: Final = {Task.TEXT_CLASSIFICATION: TaskType.SEQ_CLS, Task.CAUSAL_LM: TaskType.CAUSAL_LM}


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """What gets LoRA, and how.

    Attributes:
        targets: names of the projections (the last part of their module names).
        layers: global numbers of the layers that carry LoRA.
        layers_name: name of the block list, such as `layers` or `h`.
        rank, alpha, dropout: as in LoRA (arXiv 2106.09685): W x + alpha / rank * B A dropout(x).
        new_modules: modules without pretrained weights; trained whole and saved with the adapter.
        conv1d: weights are stored transposed, as in GPT-2.
        layer_ranks: layers whose rank differs from `rank`.
        rslora: the scale is alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732).
        dora: the norm of each output channel's weights is learned apart from their direction (DoRA, arXiv 2402.09353).
    """

    targets: tuple[str, ...]
    layers: tuple[int, ...]
    layers_name: str
    rank: int
    alpha: float
    dropout: float
    new_modules: tuple[str, ...]
    conv1d: bool
    layer_ranks: Mapping[int, int] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False


def plan_lora(
    back_end: Segment,
    *,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    dropout: float,
    new_modules: Sequence[str],
    layer_ranks: Mapping[int, int] | None = None,
    rslora: bool = False,
    dora: bool = False,
) -> LoraPlan:
    """Resolve the settings against the model: all layers that the back end holds get LoRA.

    Args:
        targets: projections to adapt; empty for all linear projections in the back end's layers.
        new_modules: dotted names of modules whose weights were drawn at random.
        layer_ranks: other ranks than `rank`, by the layer's number in the whole model.

    Raises:
        UsageError: a target does not exist; lists those that do. Or a rank is given for a layer that the back end lacks.
    """
    layers = range(back_end.first, back_end.until)
    outside = [layer for layer in layer_ranks or () if layer not in layers]
    if outside:
        raise UsageError(
            f"a LoRA rank is given for layer {outside[0]}, which carries no LoRA",
            cure=f"name layers from {layers[0]} to {layers[-1]}",
        )
    kinds = _projection_kinds(back_end)
    unknown = [target for target in targets if target not in kinds]
    if unknown:
        raise UsageError(
            f"LoRA target {', '.join(unknown)} does not exist in this model",
            cure=f"choose from: {', '.join(sorted(kinds))}",
        )
    chosen = tuple(sorted(targets or kinds))
    return LoraPlan(
        targets=chosen,
        layers=tuple(layers),
        layers_name=back_end.blocks_path.rpartition(".")[2],
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        new_modules=tuple(new_modules),
        conv1d=any(kinds[target] is Conv1D for target in chosen),
        layer_ranks=dict(layer_ranks or {}),
        rslora=rslora,
        dora=dora,
    )


def attach_lora(back_end: Segment, plan: LoraPlan, *, task: Task, seed: int) -> None:
    """Wrap the back end's model: fresh fp32 LoRA matrices drawn from `seed`, everything else frozen."""
    config = LoraConfig(
        task_type=_TASK_TYPES[task],
        r=plan.rank,
        lora_alpha=plan.alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with floats
        lora_dropout=plan.dropout,
        target_modules=list(plan.targets),
        layers_to_transform=list(plan.layers),
        layers_pattern=plan.layers_name,
        modules_to_save=list(plan.new_modules) or None,
        fan_in_fan_out=plan.conv1d,
        rank_pattern=_rank_pattern(plan),
        use_rslora=plan.rslora,
        use_dora=plan.dora,
    )
    with torch.random.fork_rng(devices=[]), _libraries_chatting_between_themselves():
        torch.manual_seed(seed)
        back_end.model = get_peft_model(_plain_model(back_end), config)
    _train_saved_modules_in_fp32(back_end.model)


def load_adapter(back_end: Segment, folder: Path) -> None:
    """Wrap the back end's model with a published adapter, for evaluation.

    Raises:
        MismatchError: the folder holds no adapter for this model.
    """
    back_end.model = attach_published(_plain_model(back_end), folder)
    _train_saved_modules_in_fp32(back_end.model)
    back_end.model.requires_grad_(False)
    back_end.model.train(False)


def load_trained(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A whole model with a published adapter inside its own layers, frozen, for evaluation at any cut.

    Raises:
        MismatchError: the folder holds no adapter for this model.
    """
    wrapped = attach_published(model, folder)
    _train_saved_modules_in_fp32(wrapped)
    wrapped.requires_grad_(False)
    wrapped.train(False)
    return cast(PreTrainedModel, wrapped.get_base_model())


def attach_published(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Any Transformers model of the right base with a published adapter, exactly as a user of plain PEFT loads it.

    Raises:
        MismatchError: there is no adapter, or its weights do not fit the model.
    """
    if not (folder / ADAPTER_WEIGHTS_FILE).is_file():
        raise MismatchError(f"{folder} holds no adapter", cure="give the run of a training that has finished")
    try:
        with _libraries_chatting_between_themselves(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # told below, by name
            wrapped = PeftModel.from_pretrained(model, str(folder))
            held = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            with safe_open(folder / ADAPTER_WEIGHTS_FILE, framework="pt") as weights:
                found = set(weights.keys())
    except (RuntimeError, ValueError, KeyError, OSError, TypeError, SafetensorError) as problem:
        raise _unfit(model, folder, " ".join(str(problem).split())) from problem
    if strange := sorted(found ^ set(held)):
        side = "has no place for" if strange[0] in found else "lacks"
        raise _unfit(
            model,
            folder,
            f"{len(strange)} weights differ; {'the model' if strange[0] in found else 'it'} {side} {strange[0]}",
        )
    return wrapped


def _unfit(model: PreTrainedModel, folder: Path, why: str) -> MismatchError:
    return MismatchError(
        f"the adapter in {folder} does not fit {model.config.model_type}: {why[:400]}",
        cure="give the base model that the run was trained on",
    )


def merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with the adapter's weights added into its own: an ordinary Transformers model."""
    merged: PreTrainedModel = attach_published(model, folder).merge_and_unload()
    return merged


def save_adapter(back_end: Segment, folder: Path, *, base_name: str, revision: str | None, card: str) -> None:
    """Write the adapter as a PEFT folder, whole or not at all; an older one is replaced.

    Args:
        base_name: hub id or folder that a user of the adapter gives to `from_pretrained`.
        card: text of the folder's README.md.
    """
    scratch = folder.with_name(folder.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    model = _peft(back_end)
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    config.revision = revision
    with _libraries_chatting_between_themselves():
        model.save_pretrained(str(scratch), save_embedding_layers=False)
    (scratch / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    scratch.replace(folder)


def trainable(back_end: Segment) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name, in a stable order."""
    return {name: parameter for name, parameter in back_end.model.named_parameters() if parameter.requires_grad}


def is_lora(parameter_name: str) -> bool:
    """True for LoRA matrices, false for modules trained whole."""
    return ".lora_" in parameter_name


@contextmanager
def _libraries_chatting_between_themselves() -> Iterator[None]:
    """Hide deprecations in how PEFT calls Transformers, and its note when the hub cannot be asked: no user can act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="Could not find a config file")
        yield


def _projection_kinds(back_end: Segment) -> dict[str, type[nn.Module]]:
    blocks = back_end.model.get_submodule(back_end.blocks_path)
    kinds: dict[str, type[nn.Module]] = {}
    for name, module in blocks.named_modules():
        index = name.partition(".")[0]
        if isinstance(module, nn.Linear | Conv1D) and int(index) >= back_end.first:
            kinds[name.rpartition(".")[2]] = type(module)
    return kinds


def _rank_pattern(plan: LoraPlan) -> dict[str, int]:
    """PEFT's regular expressions for module names, one for each layer with a rank of its own."""
    return {rf"{plan.layers_name}\.{layer}\..*": plan.layer_ranks[layer] for layer in sorted(plan.layer_ranks)}


def _plain_model(back_end: Segment) -> PreTrainedModel:
    model = back_end.model
    if not isinstance(model, PreTrainedModel):
        raise TypeError("the back end already carries an adapter")
    return model


def _peft(back_end: Segment) -> PeftModel:
    model = back_end.model
    if not isinstance(model, PeftModel):
        raise TypeError("the back end carries no adapter")
    return model


def _train_saved_modules_in_fp32(model: nn.Module) -> None:
    """Modules trained whole learn in fp32 even on a bf16 base; their input is cast to fit."""
    for name, module in model.named_modules():
        if name.endswith(".modules_to_save.default"):
            module.float()
            module.register_forward_pre_hook(_cast_to_fp32)


def _cast_to_fp32(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, torch.Tensor) else value for value in args)
