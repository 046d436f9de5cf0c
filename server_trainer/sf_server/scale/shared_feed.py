"""The batches of a plan, each process of a node bringing its share of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from sf_server.scale.orders import Channel, Order, plan_as_numbers, plan_of_numbers
from sf_server.scale.place import Place
from sf_server.store.stored import SampleInfo
from sf_server.training.balance import Balance, WindowWeights
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.feed import Fed, Feed

Prepare = Callable[[Sequence[SampleInfo]], object]


class SharedFeed(Feed):
    """The leader's feed: tells the plan to the node's other processes, and brings the leader's own share.

    Args:
        feed: brings batches of whole samples.
        prepare: what is to be done before a window's samples are brought.
    """

    def __init__(self, feed: Feed, channel: Channel, *, balance: Balance, prepare: Prepare) -> None:
        self._feed = feed
        self._channel = channel
        self._balance = balance
        self._prepare = prepare
        self._tokens: dict[int, int] = {}
        self._weights = WindowWeights([], "none")

    def prepare(self, samples: Sequence[SampleInfo]) -> None:
        """To be called before each window; the samples' lengths and weights are remembered for it."""
        self._prepare(samples)
        self._tokens = {sample.seq: sample.tokens for sample in samples}
        self._weights = WindowWeights(samples, self._balance)

    def batches(self, plan: Sequence[Sequence[int]]) -> Iterator[Fed]:
        """The batches: `seqs` of the whole batch, rows of the leader's share, tokens of the whole batch."""
        found = self._weights.of([seq for batch in plan for seq in batch])
        weights = None if found is None else found.tolist()
        self._channel.tell(Order.WINDOW, numbers=plan_as_numbers(plan, weights))
        for seqs, share in zip(plan, shares(self._feed, self._channel.world.place, plan, weights), strict=True):
            tokens = sum(self._tokens[seq] for seq in seqs)
            yield Fed(seqs=seqs, tensors=replace(share, tokens=tokens))


def shares_of_numbers(feed: Feed, place: Place, numbers: Sequence[int]) -> Iterator[BatchTensors]:
    """The shares of a process that was told a plan."""
    plan, weights = plan_of_numbers(numbers)
    return shares(feed, place, plan, weights)


def shares(
    feed: Feed, place: Place, plan: Sequence[Sequence[int]], weights: Sequence[float] | None
) -> Iterator[BatchTensors]:
    """What one process computes of each batch of a plan; of a batch that is smaller than the node it may be nothing."""
    own = [place.share(batch) for batch in plan]
    own_weights = None if weights is None else [place.share(part) for part in _cut_like(plan, weights)]
    brought = feed.batches([batch for batch in own if batch])
    for index, batch in enumerate(own):
        if not batch:
            yield _no_samples()
            continue
        tensors = next(brought).tensors
        if own_weights is not None:
            on_device = torch.tensor(own_weights[index], dtype=torch.float32, device=tensors.rows.device)
            tensors = replace(tensors, weights=on_device)
        yield tensors


def _cut_like(plan: Sequence[Sequence[int]], values: Sequence[float]) -> Iterator[Sequence[float]]:
    start = 0
    for batch in plan:
        yield values[start : start + len(batch)]
        start += len(batch)


def _no_samples() -> BatchTensors:
    empty = torch.zeros(0, 0, dtype=torch.int64)
    return BatchTensors(rows=empty[..., None].float(), mask=empty, labels=empty, tokens=0)
