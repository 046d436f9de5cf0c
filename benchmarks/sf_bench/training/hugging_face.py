"""The rival: the whole model from token ids in `transformers.Trainer`, with LoRA by PEFT. A door of its own to PEFT.

It gets what a careful user gives it: the same batches (sorted by length, so little padding), padding to the longest of a
batch, no logging, no saving, no cache of keys and values, weights in the same dtype as ours, `sdpa` attention.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.trainer_pt_utils import LengthGroupedSampler

from sf_bench.training.base import Base
from sf_bench.training.meter import Meter
from sf_bench.training.protocol import Ready, Reply
from sf_bench.training.workload import Workload, load_workload
from sf_contract.activations import NO_TARGET
from sf_contract.manifest import Task
from sf_model.blocks import find_blocks
from sf_model.checkpoint import LoadedModel

_TASK_TYPES: Final = {Task.TEXT_CLASSIFICATION: TaskType.SEQ_CLS, Task.CAUSAL_LM: TaskType.CAUSAL_LM}

Features = dict[str, torch.Tensor]


class WholeTraining:
    """The whole model.

    Args:
        first_layer: LoRA is in this layer and those above it; 0 for all.
        by_length: on batches of Transformers' own sampler, not on everyone's.
    """

    def __init__(self, base: Base, *, first_layer: int, by_length: bool) -> None:
        workload = load_workload(base)
        self._base, self._workload = base, _grouped_by_length(workload, base) if by_length else workload
        loaded = base.load()
        layers = len(find_blocks(loaded.model).modules)
        padding = _unused_id(self._workload)
        loaded.model.config.get_text_config().pad_token_id = padding
        loaded.model.config.use_cache = False
        self._model = _with_lora(loaded, base, first_layer=first_layer)
        self._collate = _Collator(self._workload, padding)
        self._ready = Ready(
            says=f"layers 0-{layers - 1}, LoRA in layers {first_layer}-{layers - 1}; "
            f"{self._workload.padding():.1%} of its batches is padding",
            layers=layers,
            learning=sum(p.numel() for p in self._model.parameters() if p.requires_grad),
        )

    def serve(self, requests: Iterator[str], reply: Callable[[Reply], None]) -> None:
        """Take turns until nobody asks any more: the Trainer trains, and waits between two steps."""
        turns = _Turns(self._base, self._workload, requests=requests, reply=reply)
        reply(self._ready)
        with tempfile.TemporaryDirectory() as folder:
            arguments = _arguments(self._base, folder, steps=len(self._workload.batches))
            trainer = _PlannedTrainer(self._model, arguments, callbacks=[turns])
            trainer.plan(self._workload.batches, self._collate, turns)
            turns.begin()
            trainer.train()


class _PlannedTrainer(Trainer):
    """Hugging Face's Trainer on given batches."""

    def plan(
        self, batches: Sequence[Sequence[int]], collate: Callable[[Sequence[int]], Features], turns: _Turns
    ) -> None:
        self._batches, self._collate, self._turns = batches, collate, turns

    def get_train_dataloader(self) -> DataLoader[Any]:
        numbers = range(1 + max(max(batch) for batch in self._batches))
        loader: DataLoader[Any] = DataLoader(numbers, batch_sampler=self._batches, collate_fn=self._collate)  # type: ignore[arg-type]
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._turns.losses.append(loss.detach())
        return loss


class _Turns(TrainerCallback):
    """Lets the Trainer go on when a turn is asked for. A turn begins before its first batch is made."""

    def __init__(
        self, base: Base, workload: Workload, *, requests: Iterator[str], reply: Callable[[Reply], None]
    ) -> None:
        self._workload, self._steps = workload, base.settings.steps
        self._requests, self._reply = requests, reply
        self._meter = Meter(base.device)
        self.losses: list[torch.Tensor] = []

    def begin(self) -> bool:
        """Wait for the next request; False when there is none."""
        found = next(self._requests, None) is not None
        self._meter.start()
        return found

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self._steps:
            return
        done = self._workload.batches[state.global_step - self._steps : state.global_step]
        losses = [float(loss) for loss in self.losses]
        self.losses.clear()
        self._reply(self._meter.finish(tokens=sum(map(self._workload.tokens, done)), losses=losses))
        if not self.begin():
            control.should_training_stop = True


class _Collator:
    """Sample numbers to token ids and labels, padded on the right to the longest."""

    def __init__(self, workload: Workload, padding: int) -> None:
        self._workload, self._padding = workload, padding

    def __call__(self, numbers: Sequence[int]) -> Features:
        workload = self._workload
        ids = [torch.tensor(workload.token_ids[number]) for number in numbers]
        mask = [torch.ones_like(each) for each in ids]
        pad = torch.nn.utils.rnn.pad_sequence
        if workload.targets[numbers[0]] is None:
            labels = torch.tensor([workload.labels[number] for number in numbers])
        else:
            labels = pad([self._labels(number) for number in numbers], batch_first=True, padding_value=NO_TARGET)
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=self._padding),
            "attention_mask": pad(mask, batch_first=True),
            "labels": labels,
        }

    def _labels(self, number: int) -> torch.Tensor:
        """Transformers compares a row with the label of the next one, so labels stand one later than targets."""
        targets = self._workload.targets[number] or ()
        return torch.tensor([NO_TARGET, *targets[:-1]])


def _grouped_by_length(workload: Workload, base: Base) -> Workload:
    """The same samples in the order that `train_sampling_strategy="group_by_length"` gives them."""
    size = base.settings.batch_samples
    generator = torch.Generator().manual_seed(base.settings.seed)
    lengths = [len(ids) for ids in workload.token_ids]
    order = list(LengthGroupedSampler(size, lengths=lengths, generator=generator))
    batches = [tuple(order[start : start + size]) for start in range(0, len(order), size)]
    repeated = itertools.islice(itertools.cycle(batches), len(workload.batches))
    return msgspec.structs.replace(workload, batches=tuple(repeated))


def _with_lora(loaded: LoadedModel, base: Base, *, first_layer: int) -> PeftModel:
    blocks = find_blocks(loaded.model)
    kinds = {
        name.rpartition(".")[2]: type(module)
        for name, module in blocks.modules.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    config = LoraConfig(
        task_type=_TASK_TYPES[base.task],
        r=base.settings.lora_rank,
        lora_alpha=2 * base.settings.lora_rank,
        target_modules=sorted(kinds),
        layers_to_transform=list(range(first_layer, len(blocks.modules))),
        layers_pattern=blocks.name,
        modules_to_save=list(loaded.new_modules) or None,
        fan_in_fan_out=Conv1D in kinds.values(),
    )
    torch.manual_seed(base.settings.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(loaded.model, config)


def _arguments(base: Base, folder: str, *, steps: int) -> TrainingArguments:
    on_cpu = base.device.type == "cpu"
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch" if on_cpu else "adamw_torch_fused",
        bf16=base.dtype is torch.bfloat16,
        use_cpu=on_cpu,
        gradient_checkpointing=base.settings.gradient_checkpointing,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=base.settings.seed,
    )


def _unused_id(workload: Workload) -> int:
    """Classes for decoders look for the last token that is not padding, so padding must be a token that no text has."""
    used = set().union(*workload.token_ids)
    return next(number for number in range(len(used) + 1) if number not in used)
