"""What the leader of a node tells the node's other processes: one small message per step, numbers only."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import torch

from sf_server.scale.world import World


class Order(enum.IntEnum):
    """What to do next."""

    WINDOW = 1
    """Bring the batches of a plan, which comes along."""

    STEP = 2
    """Make a step with the next batch of the plan."""

    JOIN = 3
    """Make a step with other nodes, without a batch."""

    RESTORE = 4
    """Take over weights and the optimizer's state, which follow."""

    SCORE = 5
    """Send a batch, whose mask follows, through this stage."""

    GATHER = 6
    """Send this stage's weights and the optimizer's state to the leader."""

    LEAVE = 7
    """Training is over, or stopped."""


class Channel:
    """Orders within one node; only its leader tells, all others hear."""

    def __init__(self, world: World) -> None:
        self.world = world

    def tell(self, order: Order, numbers: Sequence[int] = ()) -> None:
        """Tell all other processes of this node."""
        if self.world.place.local_ranks == 1:
            return
        self.world.from_leader(torch.tensor([order, len(numbers)], dtype=torch.int64))
        if numbers:
            self.world.from_leader(torch.tensor(numbers, dtype=torch.int64))

    def hear(self) -> tuple[Order, list[int]]:
        """The next order, and the numbers that came along."""
        head = torch.zeros(2, dtype=torch.int64)
        self.world.from_leader(head)
        order, count = head.tolist()
        numbers = torch.zeros(count, dtype=torch.int64)
        if count:
            self.world.from_leader(numbers)
        return Order(order), numbers.tolist()


def plan_as_numbers(plan: Sequence[Sequence[int]], weights: Sequence[float] | None) -> list[int]:
    """A plan as one row of numbers: `[batches, has weights, size of each batch, samples, weights as float32 bits]`."""
    seqs = [seq for batch in plan for seq in batch]
    bits = [] if weights is None else np.asarray(weights, dtype=np.float32).view(np.int32).tolist()
    return [len(plan), int(weights is not None), *map(len, plan), *seqs, *bits]


def plan_of_numbers(numbers: Sequence[int]) -> tuple[list[list[int]], list[float] | None]:
    """The plan, and what each of its samples counts, in the plan's order."""
    batches, has_weights, *rest = numbers
    sizes, rest = rest[:batches], rest[batches:]
    ends = np.cumsum(sizes).tolist()
    plan = [rest[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    samples = sum(sizes)
    bits = np.asarray(rest[samples:], dtype=np.int32)
    return plan, bits.view(np.float32).tolist() if has_weights else None
