"""The learner: back end with LoRA, optimizer, and one training step. Knows nothing of stores, epochs or devices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.optim import AdamW

from sf_model.back import BackEnd
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.lora import is_lora, trainable
from sf_server.training.objective import judge

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of one step; `was_skipped` when loss or gradient was not finite and nothing was changed."""

    loss: float
    gradient_norm: float
    was_skipped: bool


class Learner:
    """A back end that learns.

    Args:
        back_end: carries LoRA.
        learning_rate, head_learning_rate: peaks for LoRA matrices and for modules trained whole.
        weight_decay: AdamW's (decoupled, arXiv 1711.05101).
    """

    def __init__(
        self, back_end: BackEnd, *, learning_rate: float, head_learning_rate: float, weight_decay: float
    ) -> None:
        self.back_end = back_end
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
        loss = judge(self.back_end(batch.rows, batch.mask), batch.labels).loss
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRADIENT_NORM))
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            return StepResult(loss=value, gradient_norm=norm, was_skipped=True)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=False):
            group["lr"] = peak * rate_factor
        self._optimizer.step()
        return StepResult(loss=value, gradient_norm=norm, was_skipped=False)

    def optimizer_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """The optimizer's tensors by parameter name."""
        return {name: dict(self._optimizer.state[parameter]) for name, parameter in self.parameters.items()}

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
