"""Batches and windows: pooled, seeded, every sample once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_server.store.stored import SampleInfo
from sf_server.training.schedule import (
    FINAL_RATE,
    Budget,
    Position,
    falling_part,
    learning_rate_factor,
    plan_batches,
    window_is_ready,
)

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200)


def _infos(lengths: list[int]) -> list[SampleInfo]:
    return [SampleInfo(seq=10 + i, device=f"d{i % 3}", tokens=n, label=0) for i, n in enumerate(lengths)]


def _plan(lengths: list[int], **changes: object) -> list[list[int]]:
    options: dict[str, object] = {"seed": 1, "position": Position(), "budget": Budget(max_tokens=64, max_samples=8)}
    return plan_batches(_infos(lengths), **{**options, **changes})


@given(LENGTHS)
def test_every_sample_is_in_exactly_one_batch(lengths):
    planned = sorted(seq for batch in _plan(lengths) for seq in batch)
    assert planned == [info.seq for info in _infos(lengths)]


@given(LENGTHS)
def test_no_batch_exceeds_its_budgets_unless_one_sample_does(lengths):
    tokens = {info.seq: info.tokens for info in _infos(lengths)}
    for batch in _plan(lengths):
        assert len(batch) <= 8
        assert len(batch) == 1 or len(batch) * max(tokens[seq] for seq in batch) <= 64


def test_the_plan_depends_on_seed_and_epoch_and_on_nothing_else():
    lengths = list(range(1, 50))
    assert _plan(lengths) == _plan(lengths)
    assert _plan(lengths) != _plan(lengths, seed=2)
    assert _plan(lengths) != _plan(lengths, position=Position(epoch=2))
    assert _plan(lengths) == _plan(lengths, position=Position(next_batch=3))


def test_batches_pool_the_devices():
    batches = _plan([5] * 240)
    devices = {info.seq: info.device for info in _infos([5] * 240)}
    mixed = [batch for batch in batches if len({devices[seq] for seq in batch}) > 1]
    assert len(mixed) > 0.9 * len(batches)


def test_sorting_by_length_pads_less_than_drawing_at_random():
    lengths = [1 + (7 * i) % 60 for i in range(400)]
    tokens = {info.seq: info.tokens for info in _infos(lengths)}
    batches = _plan(lengths, budget=Budget(max_tokens=100_000, max_samples=8))
    padded = sum(len(batch) * max(tokens[seq] for seq in batch) for batch in batches)
    unsorted = [lengths[i : i + 8] for i in range(0, 400, 8)]
    assert padded < 0.75 * sum(len(batch) * max(batch) for batch in unsorted)


@pytest.mark.parametrize(
    ("available", "complete", "ready"), [(0, True, False), (3, False, False), (3, True, True), (8, False, True)]
)
def test_a_window_waits_until_it_is_full_or_the_data_is_complete(available, complete, ready):
    assert window_is_ready(available, wanted=8, complete=complete) is ready


def test_a_position_walks_through_windows_and_epochs():
    position = Position().open_window(40)
    assert position.window_is_open
    position = position.batch_done().batch_done()
    assert position.next_batch == 2
    position = position.window_done()
    assert (position.after_seq, position.next_batch, position.window_is_open) == (40, 0, False)
    assert position.next_epoch() == Position(epoch=2)


def test_the_learning_rate_warms_up_and_falls_to_its_final_part():
    def factor(step: int, progress: float) -> float:
        return learning_rate_factor(step=step, warmup_steps=10, progress=progress)

    assert factor(0, 0) == pytest.approx(0.1)
    assert factor(50, 0) == 1.0
    assert factor(50, 0.5) == pytest.approx(1 - (1 - FINAL_RATE) / 2)
    assert factor(50, 1) == pytest.approx(FINAL_RATE)


def test_the_rate_falls_over_the_whole_training_where_its_length_was_said_beforehand():
    assert falling_part(done=0, later_done=0, samples=0, expected=100, epochs=2) == 0
    assert falling_part(done=50, later_done=0, samples=0, expected=100, epochs=2) == 0.25
    assert falling_part(done=200, later_done=100, samples=100, expected=100, epochs=2) == 1
    # More arrived than was said: the rest of the fall is spread over what is known now, and it ends where it should.
    assert falling_part(done=230, later_done=0, samples=0, expected=100, epochs=2) == 1
    assert falling_part(done=150, later_done=0, samples=150, expected=100, epochs=2) == 0.5


def test_the_rate_waits_for_the_second_epoch_where_nobody_knows_how_much_will_come():
    assert falling_part(done=50, later_done=0, samples=0, expected=None, epochs=3) == 0
    assert falling_part(done=150, later_done=50, samples=100, expected=None, epochs=3) == 0.25
    assert falling_part(done=100, later_done=0, samples=100, expected=None, epochs=1) == 0
