"""The training loop on a tiny model: exact counts, exact resumption, clear endings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sf_contract.codec import WireCodec, decode_rows, encode_rows
from sf_contract.errors import DataError, StoreError
from sf_contract.messages import Role
from sf_server.training.batch_tensors import decode_to_tensor
from sf_server.training.trainer import Ending
from support.trainer_harness import (
    EPOCHS,
    SAMPLES,
    Harness,
    add_samples,
    assert_same_weights,
    made_samples,
    open_store,
    outbox_of,
)
from support.wire_rows import int4_for


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store.sqlite", devices=("d", "e")) as opened:
        yield opened


@pytest.fixture
def new_harness(tmp_path, store, tiny_model):
    made: list[Harness] = []

    def make(name: str = "run", **settings: object) -> Harness:
        made.append(Harness(tmp_path / name, store, tiny_model("llama"), **settings))
        return made[-1]

    yield make
    for harness in made:
        for log in harness.logs:
            log.close()


def test_every_sample_is_trained_exactly_as_often_as_asked(store, new_harness):
    add_samples(store, made_samples(0, SAMPLES))
    harness = new_harness()
    trainer = harness.trainer()
    harness.finish(trainer)
    assert len(harness.feed.trained) == SAMPLES
    assert set(harness.feed.trained.values()) == {EPOCHS}
    assert trainer.progress.samples_trained == SAMPLES * EPOCHS


def test_training_lowers_the_loss(store, new_harness):
    add_samples(store, made_samples(0, SAMPLES))
    harness = new_harness()
    harness.finish(harness.trainer())
    losses = [entry["loss"] for entry in harness.metrics()]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize("stop_after", [1, 7, 13, 20, 33])
def test_interrupted_and_resumed_training_is_bit_identical_to_uninterrupted(store, new_harness, stop_after):
    add_samples(store, made_samples(0, SAMPLES))
    whole = new_harness("whole")
    wanted = whole.finish(whole.trainer())

    parted = new_harness("parted")
    first = parted.trainer(steps_until_stop=stop_after)
    assert first.run() is Ending.STOPPED
    torch.manual_seed(12345)  # the new process starts with another random state
    second = parted.trainer()
    assert second.restore()
    assert_same_weights(parted.finish(second), wanted)
    assert [entry["step"] for entry in parted.metrics()] == list(range(1, second.progress.step + 1))


def test_work_after_the_last_checkpoint_is_done_again_and_not_twice(store, new_harness):
    """A kill -9: the steps since the checkpoint are lost with the process."""
    add_samples(store, made_samples(0, SAMPLES))
    harness = new_harness(checkpoint_every_s=80_000)
    first = harness.trainer(steps_until_stop=9)
    first.run()
    kept = harness.feed.trained
    lost = harness.trainer(steps_until_stop=14)
    lost.restore()
    lost._saver.save = lambda *_: True  # type: ignore[method-assign]  # the process dies before it saves
    lost.run()
    assert lost.progress.step == 14
    last = harness.trainer()
    last.restore()
    assert last.progress.step == 9
    harness.finish(last)
    assert len(kept + harness.feed.trained) == SAMPLES
    assert set((kept + harness.feed.trained).values()) == {EPOCHS}


def test_the_first_epoch_trains_while_samples_still_arrive(store, new_harness):
    arrivals = [made_samples(first, 10) for first in range(0, SAMPLES, 10)]
    add_samples(store, arrivals.pop(0))
    trained_before_the_last_arrival = []

    def one_more_device_sends() -> None:
        trained_before_the_last_arrival.append(len(harness.feed.trained))
        add_samples(store, arrivals.pop(0))

    harness = new_harness()
    trainer = harness.trainer(on_wait=one_more_device_sends)
    harness.finish(trainer)
    assert max(trained_before_the_last_arrival) >= 16
    assert len(harness.feed.trained) == SAMPLES
    assert set(harness.feed.trained.values()) == {EPOCHS}


def test_the_data_is_complete_once_the_expected_devices_have_finished(store, new_harness):
    add_samples(store, made_samples(0, 20))

    def device_finishes() -> None:
        store.note_finished(outbox=outbox_of("d"), skipped_rows=0, now_s=1.0)

    harness = new_harness(expect_samples=None, expect_devices=1, window_samples=64)
    harness.finish(harness.trainer(on_wait=device_finishes))
    assert len(harness.feed.trained) == 20


def test_the_rate_falls_in_the_first_epoch_only_if_the_number_of_samples_was_said(store, new_harness):
    def lowest_rate_of_the_first_epoch(name: str, **expectation: int | None) -> float:
        harness = new_harness(name, warmup_steps=0, **expectation)
        harness.finish(harness.trainer())
        return min(entry["rate_factor"] for entry in harness.metrics() if entry["epoch"] == 1)

    add_samples(store, made_samples(0, SAMPLES))
    store.note_finished(outbox=outbox_of("d"), skipped_rows=0, now_s=1.0)
    assert lowest_rate_of_the_first_epoch("unknown", expect_samples=None, expect_devices=1) == 1.0
    assert lowest_rate_of_the_first_epoch("said") == pytest.approx(1 - 0.9 / EPOCHS, abs=0.05)


def test_held_out_samples_are_scored_after_every_epoch_and_never_trained_on(store, new_harness):
    add_samples(store, made_samples(0, SAMPLES))
    add_samples(store, made_samples(1000, 12, Role.VALIDATION))
    harness = new_harness()
    harness.finish(harness.trainer())
    scores = harness.metrics("validation")
    assert [entry["epoch"] for entry in scores] == [1, 2, 3]
    assert all(entry["samples"] == 12 for entry in scores)
    assert scores[-1]["accuracy"] > 0.9
    assert len(harness.feed.trained) == SAMPLES


def test_finished_devices_without_samples_are_an_error_that_says_where_to_look(store, new_harness):
    store.note_finished(outbox=outbox_of("d"), skipped_rows=5, now_s=1.0)
    harness = new_harness(expect_samples=None, expect_devices=1)
    with pytest.raises(DataError, match="none of them sent a training sample"):
        harness.trainer().run()


def test_after_the_deadline_training_goes_on_with_what_has_arrived(store, new_harness):
    now_s = [0.0]
    arrivals = [made_samples(first, 5) for first in range(5, SAMPLES, 5)]
    add_samples(store, made_samples(0, 5))
    waits = []

    def time_passes() -> None:
        now_s[0] += 1.0
        waits.append(len(harness.feed.trained))
        if len(waits) % 4 == 0:
            add_samples(store, arrivals.pop(0))

    harness = new_harness(step_deadline=2.5, epochs=1)
    harness.finish(harness.trainer(on_wait=time_passes, clock=lambda: now_s[0]))
    assert waits[:3] == [0, 0, 0], "it takes nothing before the deadline"
    assert waits[3] == 5, "three seconds without a full window of 16: the five that are there"
    assert set(harness.feed.trained.values()) == {1}
    assert len(harness.feed.trained) == SAMPLES


def test_without_pooling_the_devices_follow_one_another_in_every_epoch(store, new_harness):
    for first in range(0, SAMPLES, 10):
        add_samples(store, made_samples(first, 10), "d" if first % 20 else "e")
    harness = new_harness(pool=False, window_samples=8)
    harness.finish(harness.trainer())
    device_of = {info.seq: info.device for info in store.sample_infos(role=Role.TRAIN)}
    order = [{device_of[seq] for seq in batch} for batch in harness.feed.batches_trained]
    assert all(len(devices) == 1 for devices in order)
    changes = sum(before != after for before, after in itertools.pairwise(order))
    assert changes == 2 * EPOCHS - 1
    assert set(harness.feed.trained.values()) == {EPOCHS}


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(store, new_harness):
    add_samples(store, made_samples(0, SAMPLES))
    harness = new_harness(keep_checkpoints=2)
    harness.trainer(steps_until_stop=6).run()
    folders = sorted((harness.folder / "checkpoints").iterdir())
    assert len(folders) == 2
    (folders[-1] / "tensors.safetensors").write_bytes(b"half a file")
    trainer = harness.trainer()
    assert trainer.restore()
    assert 0 < trainer.progress.step < 6
    (folders[0] / "state.json").write_bytes(b"{")
    with pytest.raises(StoreError, match="no checkpoint"):
        harness.checkpoints().load_newest()


@pytest.mark.parametrize("codec", list(WireCodec))
def test_the_pytorch_decoder_equals_the_numpy_decoder_bit_for_bit(codec):
    rows = np.random.default_rng(0).standard_normal((7, 130)).astype(np.float32) * 10
    encoded = encode_rows(rows, codec, int4_for(codec, 130))
    assert np.array_equal(decode_to_tensor(encoded).numpy(), decode_rows(encoded))
