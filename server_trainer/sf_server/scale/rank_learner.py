"""A learner that makes its steps together with others: each computes its share of the batch, and all make the same update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch

from sf_contract.activations import NO_TARGET
from sf_server.scale.orders import Channel, Order
from sf_server.scale.rounds import Notes, packed, unpack
from sf_server.scale.states import receive_state, send_state
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.learner import Learner, Part, StepResult

SEED_FACTOR: Final = 1_000_003
"""A prime: no two steps and ranks of a run draw the same dropout."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a node asks of the next step, besides training.

    Attributes:
        weight: its training samples, as far as they are known.
        stop: it was told to stop.
        save: it is time for a checkpoint.
        is_done: its samples are through.
    """

    weight: float = 1.0
    stop: bool = False
    save: bool = False
    is_done: bool = False


class RankLearner(Learner):
    """A learner among others. Call `join_world` before the first step.

    Attributes:
        agreed: the notes of the last step.
    """

    agreed: Notes = Notes()
    _wishes: Callable[[], Wishes] = Wishes

    def join_world(self, channel: Channel, *, seed: int) -> None:
        """Take part in the steps of all processes of the channel's world."""
        self._channel = channel
        self._place = channel.world.place
        self._seed = seed
        self._has_batch = False

    def ask_with(self, wishes: Callable[[], Wishes]) -> None:
        """What this node asks of every step from now on; for leaders."""
        self._wishes = wishes

    def step(self, batch: BatchTensors, *, rate_factor: float) -> StepResult:
        """One step with this process's share of a batch, which may be empty; the leader tells the others of its node."""
        self._has_batch = True
        self._draw_anew_or_tell(Order.STEP)
        return super().step(batch, rate_factor=rate_factor)

    def join(self, *, rate_factor: float = 0.0) -> bool:
        """Take part in a step without a batch; False when nobody had one, and nothing was changed."""
        self._has_batch = False
        self._draw_anew_or_tell(Order.JOIN)
        try:
            super().step(_nothing(self.device), rate_factor=rate_factor)
        except _NobodyTrained:
            return False
        return True

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def restore(
        self, parameters: Mapping[str, torch.Tensor], optimizer: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        """Put back what a checkpoint holds, in all processes of this node; for its leader."""
        self._channel.tell(Order.RESTORE)
        super().restore(parameters, optimizer)
        send_state(self._channel.world, self.parameters, self.optimizer_state())

    def take_over(self) -> None:
        """What `restore` does, in the other processes of a node."""
        super().restore(*receive_state(self._channel.world, self.parameters))

    def _draw_anew_or_tell(self, order: Order) -> None:
        """Only leaders keep a random state; the others draw from the number of updates made, the same after a restart."""
        if self._place.leads:
            self._channel.tell(order)
            return
        state = next(iter(self.optimizer_state().values()))
        updates = int(state["step"]) if state else 0
        torch.manual_seed(dropout_seed(self._seed, step=updates, rank=self._place.rank))

    def _gradients(self, batch: BatchTensors) -> Part:
        if not len(batch.rows):
            return Part(loss=0.0, targets=0)
        part = super()._gradients(batch)
        return replace(part, targets=int((batch.labels != NO_TARGET).sum()))

    def _shared(self, part: Part, rate_factor: float) -> tuple[float, float]:
        parameters = list(self.parameters.values())
        row = packed(parameters, part, self._notes(part, rate_factor))
        self._channel.world.add_up(row)
        self.agreed = unpack(row, parameters)
        if not self.agreed.trains:
            raise _NobodyTrained
        return self.agreed.loss, self.agreed.rate_factor

    def _notes(self, part: Part, rate_factor: float) -> Notes:
        own = Notes(targets=part.targets, loss_sum=part.loss * part.targets)
        if not self._place.leads:
            return own
        wishes = self._wishes()
        return replace(
            own,
            weight=wishes.weight,
            weighted_factor=wishes.weight * rate_factor,
            trains=float(self._has_batch),
            stops=float(wishes.stop),
            saves=float(wishes.save),
            is_done=float(wishes.is_done),
        )


class _NobodyTrained(Exception):
    """All nodes came to a step without a batch."""


def dropout_seed(seed: int, *, step: int, rank: int) -> int:
    """What a process that keeps no random state draws from: the same after a restart."""
    return (seed * SEED_FACTOR + step) * SEED_FACTOR + rank


def _nothing(device: torch.device) -> BatchTensors:
    empty = torch.zeros(0, 0, dtype=torch.int64, device=device)
    return BatchTensors(rows=empty[..., None].float(), mask=empty, labels=empty, tokens=0)
