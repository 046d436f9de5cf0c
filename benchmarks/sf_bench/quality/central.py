"""The control: centralised LoRA. The whole model in one place, plain PEFT, plain PyTorch, the texts themselves.

No cut, no rows, no bundle: nothing is taken from the server but its schedule (which samples are in which step, and at what
rate). Equal to a run of the server are base model, samples, batches, steps, learning rates, optimizer and its settings,
clipping, rank and targets of LoRA, the layers that have it, and all initial weights. Different: the first layers run here,
in fp32, and what enters the layers that learn is neither quantized nor written for a wire.

A door of its own to PEFT, so that the control shares no code with what it controls.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from sf_bench.quality.rehearsal import PlannedStep
from sf_contract.activations import NO_TARGET
from sf_contract.errors import TrainingFailed
from sf_contract.manifest import Task
from sf_contract.samples import TokenizedSample
from sf_model.blocks import find_blocks
from sf_model.checkpoint import LoadedModel
from sf_server.settings import TrainSettings

MAX_GRADIENT_NORM = 1.0
_TASK_TYPES = {Task.TEXT_CLASSIFICATION: TaskType.SEQ_CLS, Task.CAUSAL_LM: TaskType.CAUSAL_LM}


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Token ids and mask int64 `[batch, tokens]`, padded on the right; labels `[batch]`, or next tokens `[batch, tokens]`."""

    token_ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor


class CentralTraining:
    """The whole model with LoRA.

    Args:
        loaded: the model for the task; it is wrapped in place.
        settings: of the server's run that this is the control of.
        first_layer: LoRA is in this layer and those above it.
        padding: a token id that occurs in no sample; classes for decoders look for the last token that is another one.

    Raises:
        ValueError: the settings ask for something of LoRA that the control does not know.
    """

    def __init__(
        self, loaded: LoadedModel, settings: TrainSettings, *, task: Task, first_layer: int, padding: int
    ) -> None:
        self._padding = padding
        self._task = task
        loaded.model.config.get_text_config().pad_token_id = padding
        loaded.model.config.use_cache = False
        self.model = _with_lora(loaded, settings, task=task, first_layer=first_layer)
        learning = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        groups = [
            ([weight for name, weight in learning.items() if ".lora_" in name], settings.learning_rate),
            ([weight for name, weight in learning.items() if ".lora_" not in name], settings.head_learning_rate),
        ]
        self._peaks = [rate for weights, rate in groups if weights]
        self._weights = list(learning.values())
        self._optimizer = torch.optim.AdamW(
            [{"params": weights, "lr": rate} for weights, rate in groups if weights], weight_decay=settings.weight_decay
        )

    def train(self, samples: Sequence[TokenizedSample], plan: Iterable[PlannedStep]) -> Iterator[float]:
        """Do the steps one after the other; yields the loss of each.

        Raises:
            TrainingFailed: a loss is not finite.
        """
        for step in plan:
            self.model.train()
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self.batch([samples[index] for index in step.samples]))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._weights, MAX_GRADIENT_NORM)
            for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                group["lr"] = peak * step.rate_factor
            self._optimizer.step()
            value = float(loss.detach())
            if not value < float("inf"):
                raise TrainingFailed("the control's loss is not finite", cure="lower --learning-rate for all arms")
            yield value

    def batch(self, samples: Sequence[TokenizedSample]) -> TextBatch:
        """Samples padded on the right."""
        token_ids = [torch.tensor(sample.token_ids) for sample in samples]
        return TextBatch(
            token_ids=pad_sequence(token_ids, batch_first=True, padding_value=self._padding),
            mask=pad_sequence([torch.ones_like(ids) for ids in token_ids], batch_first=True),
            labels=_labels(samples, self._task),
        )

    def logits(self, batch: TextBatch) -> torch.Tensor:
        """`[batch, classes]` or `[batch, tokens, vocabulary]`."""
        found: torch.Tensor = self.model(input_ids=batch.token_ids, attention_mask=batch.mask).logits
        return found

    def _loss(self, batch: TextBatch) -> torch.Tensor:
        logits = self.logits(batch)
        return cross_entropy(
            logits.reshape(-1, logits.shape[-1]).float(), batch.labels.reshape(-1), ignore_index=NO_TARGET
        )


def unused_token(samples: Iterable[TokenizedSample], *, vocabulary: int) -> int:
    """The highest token id that occurs in no sample.

    Raises:
        ValueError: all occur.
    """
    used = {token for sample in samples for token in sample.token_ids}
    free = next((token for token in range(vocabulary - 1, -1, -1) if token not in used), None)
    if free is None:
        raise ValueError("every token of the vocabulary occurs, so none is left for padding")
    return free


def _with_lora(loaded: LoadedModel, settings: TrainSettings, *, task: Task, first_layer: int) -> PeftModel:
    blocks = find_blocks(loaded.model)
    config = LoraConfig(
        task_type=_TASK_TYPES[task],
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with floats
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_targets) or _linear_names(blocks.modules[first_layer:]),
        layers_to_transform=list(range(first_layer, len(blocks.modules))),
        layers_pattern=blocks.path.rpartition(".")[2],
        modules_to_save=list(loaded.new_modules) or None,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(settings.seed)
        model: PeftModel = get_peft_model(loaded.model, config)
    return model


def _linear_names(blocks: nn.ModuleList) -> list[str]:
    names = {name.rpartition(".")[2] for name, module in blocks.named_modules() if isinstance(module, nn.Linear)}
    return sorted(names)


def _labels(samples: Sequence[TokenizedSample], task: Task) -> torch.Tensor:
    if task is Task.CAUSAL_LM:
        targets = [torch.tensor(sample.targets, dtype=torch.int64) for sample in samples]
        return pad_sequence(targets, batch_first=True, padding_value=NO_TARGET)
    return torch.tensor([sample.label for sample in samples])
