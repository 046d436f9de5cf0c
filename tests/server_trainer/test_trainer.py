"""The training loop on a tiny model: exact counts, exact resumption, clear endings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_contract.activations import EncodedSample
from sf_contract.codec import WireCodec, decode_rows, encode_rows
from sf_contract.errors import DataError, StoreError, TrainingFailed
from sf_contract.manifest import Task
from sf_contract.messages import Role
from sf_model.back import BackEnd
from sf_model.checkpoint import load_model, open_checkpoint
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.training.batch_tensors import decode_to_tensor
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.learner import Learner
from sf_server.training.lora import attach_lora, plan_lora
from sf_server.training.metrics import MetricsLog
from sf_server.training.trainer import Ending, Surroundings, Trainer
from support.wire_rows import int4_for

CUT = 2
HIDDEN = 72
SAMPLES = 50
EPOCHS = 3
OUTBOX = "0" * 32
BUNDLE = "b" * 64


def _samples(first: int, count: int, role: Role = Role.TRAIN) -> list[EncodedSample]:
    generator = np.random.default_rng(first)
    made = []
    for ordinal in range(first, first + count):
        label = ordinal % 2
        rows = generator.standard_normal((3 + ordinal % 5, HIDDEN)).astype(np.float32) + (2 * label - 1)
        made.append(EncodedSample(ordinal=ordinal, role=role, rows=encode_rows(rows, WireCodec.INT8), label=label))
    return made


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store.sqlite", max_bytes=64 << 20) as opened:
        opened.note_hello(
            device="d", outbox=OUTBOX, bundle_id=BUNDLE, self_test_error=0.0, waiting_samples=0, now_s=0.0
        )
        yield opened


def _add(store: Store, samples: list[EncodedSample]) -> None:
    with store.commit():
        store.add(device="d", outbox=OUTBOX, bundle_id=BUNDLE, samples=samples)


class Harness:
    """Makes trainers that share a run folder, as restarted processes do."""

    def __init__(self, folder: Path, store: Store, model: Path, **settings: object) -> None:
        self.folder = folder
        self.store = store
        self.model = model
        options: dict[str, object] = {
            "bundle": "b", "run": "r", "expect_samples": SAMPLES, "epochs": EPOCHS, "batch_samples": 4,
            "window_samples": 16, "checkpoint_every_s": 1e-9, "warmup_steps": 3, "learning_rate": 1e-2,
        }  # fmt: skip
        self.settings = TrainSettings(**{**options, **settings})
        self.said: list[str] = []
        self.logs: list[MetricsLog] = []
        folder.mkdir(exist_ok=True)

    def trainer(self, *, steps_until_stop: int | None = None, on_wait: Callable[[], None] | None = None) -> Trainer:
        loaded = load_model(
            open_checkpoint(str(self.model)), task=Task.TEXT_CLASSIFICATION, dtype=torch.float32, labels=("no", "yes")
        )
        back_end = BackEnd(loaded.model, CUT)
        plan = plan_lora(back_end, targets=(), rank=2, alpha=4, dropout=0.3, new_modules=loaded.new_modules)
        torch.manual_seed(0)
        attach_lora(back_end, plan, task=Task.TEXT_CLASSIFICATION, seed=0)
        learner = Learner(back_end, learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=0.01)
        checkpoints = Checkpoints(self.folder / "checkpoints")
        newest = checkpoints.load_newest()
        log = MetricsLog(self.folder / "metrics.jsonl", after_step=newest.progress.step if newest else 0)
        self.logs.append(log)
        made: list[Trainer] = []

        def stopped() -> bool:
            return steps_until_stop is not None and made[0].progress.step >= steps_until_stop

        around = Surroundings(
            say=self.said.append,
            stopped=stopped,
            wait=lambda _: on_wait() if on_wait else pytest.fail("the trainer waits for samples that never come"),
            train_device=torch.device("cpu"),
        )
        made.append(Trainer(learner, self.store, self.settings, checkpoints=checkpoints, metrics=log, around=around))
        return made[0]

    def finish(self, trainer: Trainer) -> dict[str, torch.Tensor]:
        assert trainer.run() is Ending.DONE
        return {name: parameter.detach().clone() for name, parameter in trainer._learner.parameters.items()}

    def metrics(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


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
    _add(store, _samples(0, SAMPLES))
    harness = new_harness()
    trainer = harness.trainer()
    harness.finish(trainer)
    assert len(trainer.trained) == SAMPLES
    assert set(trainer.trained.values()) == {EPOCHS}


def test_training_lowers_the_loss(store, new_harness):
    _add(store, _samples(0, SAMPLES))
    harness = new_harness()
    harness.finish(harness.trainer())
    losses = [entry["loss"] for entry in harness.metrics() if entry["kind"] == "step"]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize("stop_after", [1, 7, 13, 20, 33])
def test_interrupted_and_resumed_training_is_bit_identical_to_uninterrupted(store, new_harness, stop_after):
    _add(store, _samples(0, SAMPLES))
    whole = new_harness("whole")
    wanted = whole.finish(whole.trainer())

    parted = new_harness("parted")
    first = parted.trainer(steps_until_stop=stop_after)
    assert first.run() is Ending.STOPPED
    torch.manual_seed(12345)  # the new process starts with another random state
    second = parted.trainer()
    assert second.restore()
    found = parted.finish(second)

    assert set(second.trained.values()) == {EPOCHS}
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    steps = [entry["step"] for entry in parted.metrics() if entry["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))


def test_work_after_the_last_checkpoint_is_done_again_and_not_twice(store, new_harness):
    """A kill -9: the steps since the checkpoint are lost with the process."""
    _add(store, _samples(0, SAMPLES))
    harness = new_harness(checkpoint_every_s=80_000)
    first = harness.trainer(steps_until_stop=9)
    first.run()
    lost = harness.trainer(steps_until_stop=14)
    lost.restore()
    lost._save = lambda: None  # type: ignore[method-assign]  # the process dies before it saves
    lost.run()
    assert lost.progress.step == 14
    last = harness.trainer()
    last.restore()
    assert last.progress.step == 9
    harness.finish(last)
    assert set(last.trained.values()) == {EPOCHS}


def test_the_first_epoch_trains_while_samples_still_arrive(store, new_harness):
    arrivals = [_samples(first, 10) for first in range(0, SAMPLES, 10)]
    _add(store, arrivals.pop(0))
    trained_before_the_last_arrival = []

    def one_more_device_sends() -> None:
        trained_before_the_last_arrival.append(len(trainer.trained))
        _add(store, arrivals.pop(0))

    harness = new_harness()
    trainer = harness.trainer(on_wait=one_more_device_sends)
    harness.finish(trainer)
    assert max(trained_before_the_last_arrival) >= 16
    assert set(trainer.trained.values()) == {EPOCHS}
    assert len(trainer.trained) == SAMPLES


def test_the_data_is_complete_once_the_expected_devices_have_finished(store, new_harness):
    _add(store, _samples(0, 20))

    def device_finishes() -> None:
        store.note_finished(outbox=OUTBOX, skipped_rows=0, now_s=1.0)

    harness = new_harness(expect_samples=None, expect_devices=1, window_samples=64)
    trainer = harness.trainer(on_wait=device_finishes)
    harness.finish(trainer)
    assert len(trainer.trained) == 20


def test_the_rate_falls_in_the_first_epoch_only_if_the_number_of_samples_was_said(store, new_harness):
    def lowest_rate_of_the_first_epoch(name: str, **expectation: int | None) -> float:
        harness = new_harness(name, warmup_steps=0, **expectation)
        harness.finish(harness.trainer())
        return min(entry["rate_factor"] for entry in harness.metrics() if entry.get("epoch") == 1 and "loss" in entry)

    _add(store, _samples(0, SAMPLES))
    store.note_finished(outbox=OUTBOX, skipped_rows=0, now_s=1.0)
    assert lowest_rate_of_the_first_epoch("unknown", expect_samples=None, expect_devices=1) == 1.0
    assert lowest_rate_of_the_first_epoch("said") == pytest.approx(1 - 0.9 / EPOCHS, abs=0.05)


def test_held_out_samples_are_scored_after_every_epoch_and_never_trained_on(store, new_harness):
    _add(store, _samples(0, SAMPLES))
    _add(store, _samples(1000, 12, Role.VALIDATION))
    harness = new_harness()
    trainer = harness.trainer()
    harness.finish(trainer)
    scores = [entry for entry in harness.metrics() if entry["kind"] == "validation"]
    assert [entry["epoch"] for entry in scores] == [1, 2, 3]
    assert all(entry["samples"] == 12 for entry in scores)
    assert scores[-1]["accuracy"] > 0.9
    assert len(trainer.trained) == SAMPLES


def test_finished_devices_without_samples_are_an_error_that_says_where_to_look(store, new_harness):
    store.note_finished(outbox=OUTBOX, skipped_rows=5, now_s=1.0)
    harness = new_harness(expect_samples=None, expect_devices=1)
    with pytest.raises(DataError, match="none of them sent a training sample"):
        harness.trainer().run()


def test_steps_that_are_not_finite_change_nothing_and_end_training_when_they_go_on(store, new_harness):
    _add(store, _samples(0, SAMPLES))
    harness = new_harness()
    trainer = harness.trainer()
    name, parameter = next(iter(trainer._learner.parameters.items()))
    with torch.no_grad():
        parameter.fill_(float("nan"))
    others = {n: p.detach().clone() for n, p in trainer._learner.parameters.items() if n != name}
    with pytest.raises(TrainingFailed, match="10 steps in a row"):
        trainer.run()
    assert trainer.progress.skipped_steps == 10
    assert all(torch.equal(trainer._learner.parameters[n], before) for n, before in others.items())


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(store, new_harness):
    _add(store, _samples(0, SAMPLES))
    harness = new_harness()
    harness.trainer(steps_until_stop=6).run()
    folders = sorted((harness.folder / "checkpoints").iterdir())
    assert len(folders) == 2
    (folders[-1] / "tensors.safetensors").write_bytes(b"half a file")
    trainer = harness.trainer()
    assert trainer.restore()
    assert 0 < trainer.progress.step < 6
    (folders[0] / "state.json").write_bytes(b"{")
    with pytest.raises(StoreError, match="no checkpoint"):
        Checkpoints(harness.folder / "checkpoints").load_newest()


@pytest.mark.parametrize("codec", list(WireCodec))
def test_the_pytorch_decoder_equals_the_numpy_decoder_bit_for_bit(codec):
    rows = np.random.default_rng(0).standard_normal((7, 130)).astype(np.float32) * 10
    encoded = encode_rows(rows, codec, int4_for(codec, 130))
    assert np.array_equal(decode_to_tensor(encoded).numpy(), decode_rows(encoded))
