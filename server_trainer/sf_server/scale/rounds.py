"""One step of all processes: what each brings, and what comes of it, as one row of numbers that is added up.

LoRA is a few megabytes, so one sum per step carries gradients, loss and everything nodes must agree on; a process without
samples brings zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Self

import torch
from torch import nn

from sf_server.training.learner import Part


@dataclass(frozen=True, slots=True)
class Notes:
    """What travels with the gradients, and is added up like them.

    Attributes:
        targets: targets of the gradient.
        loss_sum: their losses.
        weight: how much the node's view of the learning rate counts: its training samples. Given by leaders only, as all below.
        weighted_factor: `weight` times the part of the peak learning rate that the node's own progress asks for.
        trains: 1 for a node with a batch.
        stops: 1 for a node that was told to stop.
        saves: 1 for a node that wishes to save after this step.
        is_done: 1 for a node whose samples were all trained on as often as they should be.
    """

    targets: float = 0.0
    loss_sum: float = 0.0
    weight: float = 0.0
    weighted_factor: float = 0.0
    trains: float = 0.0
    stops: float = 0.0
    saves: float = 0.0
    is_done: float = 0.0

    @classmethod
    def of(cls, values: torch.Tensor) -> Self:
        """From the row of numbers."""
        return cls(*values.tolist())

    @property
    def loss(self) -> float:
        """Mean loss of all targets."""
        return self.loss_sum / max(self.targets, 1.0)

    @property
    def rate_factor(self) -> float:
        """The part of the peak learning rate for all nodes: it falls as in one process that has all their samples."""
        return self.weighted_factor / self.weight


NOTES = len(fields(Notes))


def packed(parameters: Sequence[nn.Parameter], part: Part, notes: Notes) -> torch.Tensor:
    """One float32 row: the gradients times the number of their targets, then the notes.

    Args:
        parameters: with the gradient of the mean loss of `part`, or without any.
    """
    device = parameters[0].device
    pieces = [
        torch.zeros(parameter.numel(), device=device)
        if parameter.grad is None
        else parameter.grad.detach().reshape(-1).float() * part.targets
        for parameter in parameters
    ]
    return torch.cat([*pieces, torch.tensor(astuple(notes), dtype=torch.float32, device=device)])


def unpack(row: torch.Tensor, parameters: Sequence[nn.Parameter]) -> Notes:
    """Give the parameters the gradient of the mean loss of all targets; what was noted."""
    notes = Notes.of(row[-NOTES:])
    gradients = row[:-NOTES].div_(max(notes.targets, 1.0))
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.grad = gradients[start:end].view_as(parameter).to(parameter.dtype)
        start = end
    return notes
