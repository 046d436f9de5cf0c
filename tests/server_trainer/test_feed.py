"""Batches prepared ahead: the same ones, in the same order, bounded, with errors where they are seen, and an end to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from sf_contract.codec import WireCodec, encode_rows
from sf_contract.errors import StoreError
from sf_model.back import PadSide
from sf_server.store.stored import StoredSample
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.feed import Feed
from sf_server.training.slices import slices_of

HIDDEN = 8
PLAN = [[3, 1], [4, 2, 0], [5], [7, 6], [8], [9]]
MISSING = 7
PATIENCE_S = 20.0


class Padder:
    """The part of a back end that a feed needs."""

    pad_side = PadSide.RIGHT

    @staticmethod
    def pad(sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        ones = [torch.ones(len(sequence), dtype=torch.int64) for sequence in sequences]
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(list(sequences), batch_first=True), pad(ones, batch_first=True)


class Source:
    """Samples made up; remembers in which thread they were asked for."""

    def __init__(self, *, missing: int | None = None) -> None:
        self.missing = missing
        self.loaded: list[list[int]] = []
        self.threads: set[int] = set()
        self.opened = 0
        self.closed = threading.Event()
        self.changed = threading.Condition()

    def load(self, seqs: Sequence[int]) -> list[StoredSample]:
        if self.missing in seqs:
            raise StoreError("there is no such sample", cure="none")
        with self.changed:
            self.loaded.append(list(seqs))
            self.threads.add(threading.get_ident())
            self.changed.notify_all()
        return [_sample(seq) for seq in seqs]

    @contextmanager
    def open(self) -> Iterator[Source]:
        self.opened += 1
        try:
            yield self
        finally:
            self.closed.set()

    def wait_for_loads(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.loaded) >= count, timeout=PATIENCE_S)


def _sample(seq: int) -> StoredSample:
    rows = np.random.default_rng(seq).normal(size=(seq % 4 + 1, HIDDEN)).astype(np.float32)
    return StoredSample(seq=seq, device="d", rows=encode_rows(rows, WireCodec.INT8), label=seq % 2, targets=None)


def _feed(source: Source, *, prefetch: int) -> Feed:
    return Feed(source, Padder(), torch.device("cpu"), prefetch=prefetch, open_source=source.open)


@pytest.mark.parametrize("prefetch", [1, 2, 100])
def test_batches_prepared_ahead_are_those_that_are_made_when_asked_for(prefetch: int) -> None:
    source = Source()
    wanted = list(_feed(Source(), prefetch=0).batches(PLAN))
    found = list(_feed(source, prefetch=prefetch).batches(PLAN))
    assert [fed.seqs for fed in found] == [fed.seqs for fed in wanted] == PLAN
    for one, other in zip(found, wanted, strict=True):
        for name in ("rows", "mask", "labels"):
            assert torch.equal(getattr(one.tensors, name), getattr(other.tensors, name))
        assert one.tensors.tokens == other.tensors.tokens
    assert source.opened == 1
    assert source.closed.is_set()
    assert threading.get_ident() not in source.threads


def test_no_more_batches_than_asked_for_are_made_ahead() -> None:
    source = Source()
    batches = _feed(source, prefetch=2).batches(PLAN)
    next(batches)
    source.wait_for_loads(3)  # the one at hand, and two more
    with source.changed:  # right code waits for nothing here and cannot fail; wrong code has time to show itself
        assert not source.changed.wait_for(lambda: len(source.loaded) > 3, timeout=0.3)
    next(batches)
    source.wait_for_loads(4)
    assert source.loaded == PLAN[:4]
    batches.close()


def test_what_goes_wrong_is_raised_where_the_batch_is_asked_for_and_not_before() -> None:
    source = Source(missing=MISSING)
    batches = _feed(source, prefetch=100).batches(PLAN)
    assert [next(batches).seqs for _ in range(3)] == PLAN[:3]
    with pytest.raises(StoreError, match="no such sample"):
        next(batches)
    assert source.closed.is_set()


def test_a_source_that_cannot_be_opened_says_so_to_the_trainer() -> None:
    @contextmanager
    def broken() -> Iterator[Source]:
        raise StoreError("the store cannot be opened", cure="none")
        yield Source()

    feed = Feed(Source(), Padder(), torch.device("cpu"), prefetch=1, open_source=broken)
    with pytest.raises(StoreError, match="cannot be opened"):
        next(feed.batches(PLAN))


@pytest.mark.parametrize("prefetch", [1, 100])
def test_a_trainer_that_stops_in_the_middle_leaves_no_thread_and_no_open_source(prefetch: int) -> None:
    before = threading.active_count()
    source = Source()
    batches = _feed(source, prefetch=prefetch).batches(PLAN)
    next(batches)
    batches.close()
    assert source.closed.is_set()
    assert threading.active_count() == before


def test_without_prefetching_no_thread_is_started() -> None:
    source = Source()
    list(_feed(source, prefetch=0).batches(PLAN))
    assert source.threads == {threading.get_ident()}
    assert source.opened == 0


def _batch(lengths: Sequence[int], side: PadSide) -> BatchTensors:
    longest = max(lengths)
    places = torch.arange(longest)
    kept = torch.tensor(lengths)[:, None]
    mask = ((places < kept) if side is PadSide.RIGHT else (places >= longest - kept)).long()
    rows = torch.arange(len(lengths) * longest, dtype=torch.float32).reshape(len(lengths), longest, 1) * mask[..., None]
    return BatchTensors(
        rows=rows, mask=mask, labels=rows[..., 0].long(), tokens=sum(lengths), weights=torch.arange(float(len(lengths)))
    )


@pytest.mark.parametrize("side", list(PadSide))
@pytest.mark.parametrize("max_tokens", [1, 7, 12, 30, 1000])
def test_parts_of_a_batch_hold_every_row_once_within_the_bound(side: PadSide, max_tokens: int) -> None:
    batch = _batch([5, 1, 3, 7, 7, 2], side)
    parts = list(slices_of(batch, side, max_tokens=max_tokens))
    for name in ("rows", "labels"):
        found = torch.cat([getattr(part, name)[part.mask > 0] for part in parts])
        assert torch.equal(found, getattr(batch, name)[batch.mask > 0])
    assert torch.equal(torch.cat([part.weights for part in parts]), batch.weights)
    assert [part.tokens for part in parts] == [int(part.mask.sum()) for part in parts]
    for part in parts:
        assert part.mask.numel() <= max_tokens or len(part.mask) == 1
        assert int(part.mask.sum(1).max()) == part.mask.shape[1], "cut to its longest sample"


def test_parts_are_as_few_as_neighbours_allow_and_the_batch_itself_where_it_fits() -> None:
    batch = _batch([2, 2, 4, 4], PadSide.LEFT)
    assert [tuple(part.mask.shape) for part in slices_of(batch, PadSide.LEFT, max_tokens=8)] == [(2, 2), (2, 4)]
    assert list(slices_of(batch, PadSide.LEFT, max_tokens=None)) == [batch]
    assert list(slices_of(batch, PadSide.LEFT, max_tokens=16)) == [batch]
