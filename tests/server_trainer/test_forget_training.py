"""Training goes on after samples were removed: what is left is trained on exactly as often as asked, and nothing waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from sf_contract.errors import DataError
from sf_contract.messages import Role
from sf_server.store.removal import Remover
from sf_server.store.store import Store
from sf_server.training.trainer import Ending
from support.trainer_harness import EPOCHS, SAMPLES, Harness, add_samples, made_samples, open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def store(path: Path):
    with open_store(path, devices=("a", "b")) as opened:
        for start in range(0, SAMPLES, 10):
            add_samples(opened, made_samples(start, 10), device="ab"[start // 10 % 2])
        yield opened


@pytest.fixture
def new_harness(tmp_path: Path, store: Store, tiny_model):
    made: list[Harness] = []

    def make(**settings: object) -> Harness:
        made.append(Harness(tmp_path / "run", store, tiny_model("llama"), **settings))
        return made[-1]

    yield make
    for harness in made:
        for log in harness.logs:
            log.close()


def _forget(path: Path, device: str) -> None:
    with Remover(path) as remover:
        remover.remove_device(device, now_s=1.0)
        remover.compact()


@pytest.mark.parametrize("stop_after", [6, 8, 17])
def test_a_run_that_is_resumed_after_a_device_was_forgotten_trains_the_others_exactly_as_often(
    path, store, new_harness, stop_after
) -> None:
    """Stopped within the first epoch, between windows, and within later ones."""
    harness = new_harness()
    first = harness.trainer(steps_until_stop=stop_after)
    assert first.run() is Ending.STOPPED
    before = harness.feed.trained.copy()
    _forget(path, "b")
    left = {info.seq for info in store.sample_infos(role=Role.TRAIN)}
    assert len(left) == 30

    second = harness.trainer()
    assert second.restore()
    harness.finish(second)
    after = harness.feed.trained
    assert set(after) <= left
    assert {seq: before[seq] + after[seq] for seq in left} == dict.fromkeys(left, EPOCHS)


def test_a_run_whose_samples_were_all_removed_says_so(path, new_harness) -> None:
    harness = new_harness()
    first = harness.trainer(steps_until_stop=17)
    assert first.run() is Ending.STOPPED
    for device in ("a", "b"):
        _forget(path, device)
    second = harness.trainer()
    assert second.restore()
    with pytest.raises(DataError, match="all 50 training samples were removed"):
        second.run()


def test_old_samples_are_removed_between_windows_only(path, store, new_harness) -> None:
    """The loop says when: with a window open, the samples that its batches name are about to be read."""
    harness = new_harness()
    trainer = harness.trainer()
    open_windows: list[bool] = []
    around = trainer._around
    object.__setattr__(around, "tidy", lambda: open_windows.append(trainer.progress.position.window_is_open))
    harness.finish(trainer)
    assert len(open_windows) >= 4 + (EPOCHS - 1)
    assert not any(open_windows)
