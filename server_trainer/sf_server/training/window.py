"""The open window: its samples, what is left of its plan, and what each sample counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

import torch

from sf_contract.messages import Role
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.store.stored import SampleInfo
from sf_server.training.balance import WindowWeights
from sf_server.training.feed import Fed
from sf_server.training.marks import Marks
from sf_server.training.schedule import Budget, Position, plan_batches, rest_of_plan

LISTED_AT_ONCE: Final = 10_000


def window_samples(store: Store, position: Position, *, limit: int | None) -> list[SampleInfo]:
    """The training samples of the open window, of which it has `limit` at most."""
    infos = store.sample_infos(role=Role.TRAIN, after_seq=position.after_seq, limit=limit)
    return [info for info in infos if info.seq <= position.upto_seq]


def plan_window(samples: Sequence[SampleInfo], settings: TrainSettings, position: Position) -> list[list[int]]:
    """Batches of these samples."""
    return plan_batches(
        samples,
        seed=settings.seed,
        position=position,
        budget=Budget(max_tokens=settings.batch_tokens, max_samples=settings.batch_samples),
        pool=settings.pool,
    )


def rest_of_window(
    samples: Sequence[SampleInfo], settings: TrainSettings, position: Position, marks: Marks
) -> tuple[Sequence[list[int]], str | None]:
    """Batches of the window that are not done, and what there is to say about them.

    Where the plan is not the one that was begun, the samples that are left are dealt out anew.
    """
    plan = plan_window(samples, settings, position)
    rest = rest_of_plan(plan, next_batch=position.next_batch, is_done=marks.__contains__)
    if rest is not None:
        return rest, None
    left = [sample for sample in samples if sample.seq not in marks]
    return plan_window(left, settings, position), (
        "batch settings or stored samples have changed since this window was begun; "
        f"the {len(left)} of its {len(samples)} samples that are left are dealt out anew"
    )


def train_seqs(store: Store, *, upto_seq: int) -> Iterator[int]:
    """All training samples up to one, a few at a time."""
    after_seq = 0
    while infos := store.sample_infos(role=Role.TRAIN, after_seq=after_seq, limit=LISTED_AT_ONCE):
        yield from (info.seq for info in infos if info.seq <= upto_seq)
        after_seq = infos[-1].seq
        if after_seq >= upto_seq:
            return


def weighted(batch: Fed, weights: WindowWeights) -> Fed:
    """The batch with what each of its samples counts; the batch itself where all count the same, or where it says so."""
    found = weights.of(batch.seqs)
    if found is None or batch.tensors.weights is not None:
        return batch
    on_device = torch.from_numpy(found).to(batch.tensors.rows.device)
    return dataclasses.replace(batch, tensors=dataclasses.replace(batch.tensors, weights=on_device))


def described(batch: Fed) -> str:
    """How large a batch is, for people."""
    samples, width = batch.tensors.mask.shape
    return f"{samples} samples, the longest of {width} tokens: {samples * width} tokens with padding"
