"""The learner: back end with LoRA, optimizer, and one training step. Knows nothing of stores, epochs or devices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.optim import AdamW

from sf_contract.activations import NO_TARGET
from sf_model.back import Segment
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.lora import is_lora, trainable
from sf_server.training.objective import Objective
from sf_server.training.slices import slices_of

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of one step; `was_skipped` when loss or gradient was not finite and nothing was changed."""

    loss: float
    gradient_norm: float
    was_skipped: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What one process computed of a step: the mean loss of its targets, and how many they are."""

    loss: float
    targets: int


class Learner:
    """A back end that learns.

    Args:
        back_end: carries LoRA.
        learning_rate, head_learning_rate: peaks for LoRA matrices and for modules trained whole.
        weight_decay: AdamW's (decoupled, arXiv 1711.05101).
        micro_batch_tokens: tokens, padding included, that are computed at one time; a larger batch is computed in parts, with
            the gradient of the whole. None: no limit.

    Attributes:
        objective: what a batch's loss is, and how it is computed.
    """

    def __init__(
        self,
        back_end: Segment,
        *,
        learning_rate: float,
        head_learning_rate: float,
        weight_decay: float,
        micro_batch_tokens: int | None = None,
    ) -> None:
        self.back_end = back_end
        self.objective = Objective(back_end)
        self._micro_batch_tokens = micro_batch_tokens
        self.parameters = trainable(back_end)
        lora = [p for name, p in self.parameters.items() if is_lora(name)]
        whole = [p for name, p in self.parameters.items() if not is_lora(name)]
        groups = [{"params": lora, "lr": learning_rate}, {"params": whole, "lr": head_learning_rate}]
        self._peaks = [learning_rate, head_learning_rate]
        self._optimizer = AdamW([g for g in groups if g["params"]], weight_decay=weight_decay)
        if not lora:
            self._peaks = [head_learning_rate]

    def step(self, batch: BatchTensors, *, rate_factor: float) -> StepResult:
        """Forward, backward and update on one batch; a non-finite loss or gradient changes nothing."""
        self.back_end.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        value, rate_factor = self._shared(self._gradients(batch), rate_factor)
        norm = self._clip()
        if not (math.isfinite(value) and math.isfinite(norm)):
            return StepResult(loss=value, gradient_norm=norm, was_skipped=True)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=False):
            group["lr"] = peak * rate_factor
        self._optimizer.step()
        return StepResult(loss=value, gradient_norm=norm, was_skipped=False)

    def _gradients(self, batch: BatchTensors) -> Part:
        """Add the gradient of the batch's mean loss to the parameters."""
        targets = max(int((batch.labels != NO_TARGET).sum()), 1)
        loss = 0.0
        for part in slices_of(batch, self.back_end.pad_side, max_tokens=self._micro_batch_tokens):
            part_loss = self.objective.outcome(part).loss_sum / targets
            part_loss.backward()  # type: ignore[no-untyped-call]
            loss += float(part_loss.detach())
        return Part(loss=loss, targets=targets)

    def _shared(self, part: Part, rate_factor: float) -> tuple[float, float]:
        """Loss and rate factor of the whole step; where several processes make it together, their gradients become one."""
        return part.loss, rate_factor

    def _clip(self) -> float:
        """Bound the norm of the gradient; the norm it had."""
        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRADIENT_NORM))

    def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """The optimizer's tensors by parameter name."""
        return {name: dict(self._optimizer.state[parameter]) for name, parameter in self.parameters.items()}

    def size(self) -> int:
        """How many weights learn."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
        """What a checkpoint holds: the weights that learn, and the optimizer's tensors, by name."""
        return dict(self.parameters), self.optimizer_state()

    def restore(
        self, parameters: Mapping[str, torch.Tensor], optimizer: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        """Put back what a checkpoint holds."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(parameters[name])
                if name in optimizer:
                    self._optimizer.state[parameter] = {
                        key: tensor.clone() if key == "step" else tensor.to(parameter.device)
                        for key, tensor in optimizer[name].items()
                    }
