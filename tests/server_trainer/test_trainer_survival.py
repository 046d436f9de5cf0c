"""What training survives: being stopped at any moment, a full disk, numbers that are none, no memory, a changed store."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from sf_contract.errors import DiskFull, TrainingFailed
from sf_contract.messages import Role
from sf_server.store.store import Store
from sf_server.training.failures import is_out_of_memory
from sf_server.training.room import RETRY_S, full_disk_by_name
from sf_server.training.trainer import Ending
from support.trainer_harness import (
    EPOCHS,
    SAMPLES,
    Harness,
    add_samples,
    assert_same_weights,
    made_samples,
    open_store,
    weights_of,
)

HELD_OUT = 12


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store.sqlite", devices=("d", "e")) as opened:
        add_samples(opened, made_samples(0, SAMPLES))
        add_samples(opened, made_samples(1000, HELD_OUT, Role.VALIDATION))
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


class StoppedAtTheCall:
    """SIGTERM at the n-th time that anybody asks; `asked` is how often that was."""

    def __init__(self, number: float) -> None:
        self.asked = 0
        self._number = number

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked >= self._number


def test_stopped_at_any_moment_it_goes_on_bit_identically_and_validates_each_epoch_once(store, new_harness):
    """The moments: between steps, between epochs, before, in and after a validation."""
    whole = new_harness("whole", batch_tokens=64)
    never = StoppedAtTheCall(float("inf"))
    wanted = whole.finish(whole.trainer(stopped=never))
    wanted_scores = scores_of(whole)
    parted = new_harness("parted", batch_tokens=64)
    stops = [3, 4, *range(7, never.asked // 3, 9)]
    for number in stops:
        trainer = parted.trainer(stopped=StoppedAtTheCall(number))
        trainer.restore()
        if trainer.run() is Ending.DONE:
            break
    else:
        trainer = parted.trainer()
        trainer.restore()
        assert trainer.run() is Ending.DONE
    assert_same_weights(weights_of(trainer), wanted)
    assert scores_of(parted) == wanted_scores
    assert trainer.last_score is not None
    assert trainer.last_score.whole.loss == wanted_scores[-1]["loss"]


def scores_of(harness: Harness) -> list[dict[str, object]]:
    """Its validations, without the time of day."""
    return [{key: value for key, value in entry.items() if key != "time_s"} for entry in harness.metrics("validation")]


def test_stopped_in_a_validation_it_leaves_at_once_and_validates_again_later(store, new_harness):
    harness = new_harness(batch_tokens=16)  # several batches of held-out samples
    loads: list[int] = []
    trainer = harness.trainer(stopped=lambda: len(loads) == 2)
    load = Store.load

    def counted(self: Store, seqs: list[int]) -> object:
        if max(seqs) > SAMPLES:
            loads.append(len(seqs))
        return load(self, seqs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "load", counted)
        assert trainer.run() is Ending.STOPPED
    assert sum(loads) < HELD_OUT
    assert harness.metrics("validation") == []
    again = harness.trainer()
    assert again.restore()
    assert (again.progress.position.epoch, again.progress.validated) == (2, 0)
    harness.finish(again)
    assert [entry["epoch"] for entry in harness.metrics("validation")] == [1, 2, 3]


def test_a_checkpoint_is_there_before_the_validation_begins(store, new_harness):
    harness = new_harness(checkpoint_every_s=80_000)
    trainer = harness.trainer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sf_server.training.trainer.score_samples", lambda *_, **__: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception, match="killed here"):
            trainer.run()
    snapshot = harness.checkpoints().load_newest()
    assert snapshot is not None
    assert snapshot.progress == trainer.progress
    assert snapshot.progress.position.epoch == 2


def test_a_validation_that_was_done_is_not_done_again(store, new_harness):
    harness = new_harness(checkpoint_every_s=80_000)
    trainer = harness.trainer()
    step = trainer._learner.step

    def killed_in_the_second_epoch(*args, **named):
        if trainer.progress.position.epoch == 2:
            pytest.fail("killed here")
        return step(*args, **named)

    trainer._learner.step = killed_in_the_second_epoch
    with pytest.raises(pytest.fail.Exception, match="killed here"):
        trainer.run()
    again = harness.trainer()
    assert again.restore()
    assert (again.progress.position.epoch, again.progress.validated) == (2, 1)


def test_what_preparing_finds_no_room_for_is_waited_for(store, new_harness):
    harness = new_harness(epochs=1, validate=False)
    waits: list[float] = []
    trainer = harness.trainer(on_wait=lambda: waits.append(RETRY_S))

    def prepare(samples):
        if len(waits) < 3:
            raise DiskFull("there is no room for lifted samples", cure="free some space")

    trainer._around = dataclasses.replace(trainer._around, prepare=prepare)
    harness.finish(trainer)
    assert len(waits) == 3
    assert set(harness.feed.trained.values()) == {1}


def test_the_newest_checkpoints_and_the_best_are_kept(store, new_harness):
    harness = new_harness(keep_checkpoints=2)
    trainer = harness.trainer()
    harness.finish(trainer)
    names = sorted(path.name for path in (harness.folder / "checkpoints").iterdir())
    assert [name.partition("-")[0] for name in names] == ["best", "step", "step"]
    scores = harness.metrics("validation")
    lowest = min(scores, key=lambda entry: entry["loss"])
    best = harness.checkpoints().best()
    assert best is not None
    assert (best.epoch, best.step, best.loss) == (lowest["epoch"], lowest["step"], lowest["loss"])


def test_publish_best_gives_the_learner_the_weights_of_the_best_epoch(store, new_harness):
    harness = new_harness(publish="best", learning_rate=1e-2)
    trainer = harness.trainer()
    losses = iter([0.5, 0.3, 0.4])
    weights: list[dict[str, torch.Tensor]] = []
    validate = trainer.validate

    def validated():
        weights.append(weights_of(trainer))
        score = validate()
        score.whole.loss_sum = next(losses, 0.3) * score.whole.targets
        return score

    trainer.validate = validated
    assert trainer.run() is Ending.DONE
    assert_same_weights(weights_of(trainer), weights[1])
    assert trainer.published is not None
    assert trainer.published.epoch == 2
    assert trainer.last_score.whole.loss == pytest.approx(0.3)
    again = harness.trainer()
    assert again.restore()
    assert again.run() is Ending.DONE
    assert_same_weights(weights_of(again), weights[1])
    assert again.progress == trainer.progress, "the checkpoint to go on from is the last one, not the best"


def test_the_last_epoch_is_published_by_default_or_where_nothing_was_held_out(tmp_path, tiny_model):
    with open_store(tmp_path / "other.sqlite") as other:
        add_samples(other, made_samples(0, SAMPLES))
        harness = Harness(tmp_path / "run", other, tiny_model("llama"), publish="best", epochs=1)
        trainer = harness.trainer()
        harness.finish(trainer)
        harness.logs[0].close()
    assert trainer.published is None
    assert any("no samples were held out" in line for line in harness.said)


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[Callable[[], None]]:
    """A disk with so little room, as the system's limit on file sizes; gives what ends it."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)

    def make_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)

    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, former[1]))
    try:
        yield make_room
    finally:
        make_room()


def test_a_full_disk_holds_up_checkpoints_and_metrics_and_nothing_else(store, new_harness):
    whole = new_harness("whole")
    wanted = whole.finish(whole.trainer())
    harness = new_harness()
    assert harness.trainer(steps_until_stop=3).run() is Ending.STOPPED
    kept = sorted((harness.folder / "checkpoints").iterdir())
    trainer = harness.trainer(steps_until_stop=20)
    trainer.restore()
    with files_of_at_most(1_000):  # not even the best of an epoch keeps it waiting
        assert trainer.run() is Ending.STOPPED, "a full disk must not keep it from leaving"
    assert trainer.progress.step == 20
    assert sorted((harness.folder / "checkpoints").iterdir()) == kept
    said = "\n".join(harness.said)
    assert said.count("no room for a checkpoint") == 1
    assert "that of step 3 is kept" in said
    assert said.count("no room for") == 2, "the metrics, once too"
    lines = (harness.folder / "metrics.jsonl").read_text().splitlines()
    assert all(line.startswith("{") and line.endswith("}") for line in lines), "no half lines"
    again = harness.trainer()
    again.restore()
    assert again.progress.step == 3
    assert_same_weights(harness.finish(again), wanted)


def test_with_room_again_checkpoints_and_held_up_metrics_are_written(store, new_harness):
    harness = new_harness(epochs=1)
    now_s = [0.0]
    waits: list[float] = []
    with files_of_at_most(1_000) as make_room:

        def time_passes() -> None:
            now_s[0] += RETRY_S
            waits.append(now_s[0])
            if len(waits) == 3:
                make_room()

        trainer = harness.trainer(on_wait=time_passes, clock=lambda: now_s[0])
        harness.finish(trainer)
    assert len(waits) == 3
    assert harness.checkpoints().load_newest().progress == trainer.progress
    assert [entry["step"] for entry in harness.metrics()] == list(range(1, trainer.progress.step + 1))
    assert any("there is room for checkpoints again" in line for line in harness.said)


def test_an_adapter_without_room_is_an_error_that_says_so(tmp_path):
    target = tmp_path / "adapter.safetensors"
    with files_of_at_most(1_000), pytest.raises(DiskFull, match=r"no room for .*adapter"), full_disk_by_name(target):
        save_file({"weight": torch.zeros(10_000)}, target)


def test_what_a_killed_process_was_writing_is_removed(store, new_harness):
    harness = new_harness(epochs=1)
    half = harness.folder / "checkpoints" / ".step-0000000007"
    half.mkdir(parents=True)
    (half / "tensors.safetensors").write_bytes(b"half")
    harness.finish(harness.trainer())
    assert not half.exists()


def test_steps_that_are_not_finite_change_nothing_and_end_training_when_they_go_on(store, new_harness):
    harness = new_harness()
    trainer = harness.trainer()
    name, parameter = next(iter(trainer._learner.parameters.items()))
    with torch.no_grad():
        parameter.fill_(float("nan"))
    others = {n: p.detach().clone() for n, p in trainer._learner.parameters.items() if n != name}
    trainer._saver.save = lambda *_: True  # such weights would not even be saved
    with pytest.raises(TrainingFailed, match="10 steps in a row") as raised:
        trainer.run()
    assert "--learning-rate" in raised.value.cure
    assert trainer.progress.skipped_steps == 10
    assert all(torch.equal(trainer._learner.parameters[n], before) for n, before in others.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_never_saved(store, new_harness, value):
    harness = new_harness()
    harness.trainer(steps_until_stop=5).run()
    kept = sorted((harness.folder / "checkpoints").iterdir())
    trainer = harness.trainer(steps_until_stop=6)
    trainer.restore()
    step = trainer._learner.step

    def spoiling(batch, *, rate_factor):
        result = step(batch, rate_factor=rate_factor)
        with torch.no_grad():
            list(trainer._learner.parameters.values())[-1].view(-1)[1] = value
        return result

    trainer._learner.step = spoiling
    with pytest.raises(TrainingFailed, match="not finite any more") as raised:
        trainer.run()
    assert "step 5 is intact" in raised.value.cure
    assert sorted((harness.folder / "checkpoints").iterdir()) == kept


def test_no_memory_names_the_batch_and_the_setting_to_lower(store, new_harness):
    harness = new_harness(batch_tokens=1000)
    trainer = harness.trainer()
    trainer._learner.step = lambda *_, **__: torch.empty(1 << 55)  # PyTorch's own failure and words
    with pytest.raises(
        TrainingFailed, match="memory ran out in step 1, on a batch of 4 samples, the longest of"
    ) as raised:
        trainer.run()
    assert "--batch-tokens (now 1000; try 500)" in raised.value.cure
    assert "--resume" in raised.value.cure


@pytest.mark.parametrize(
    ("problem", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
    ids=["python", "cuda", "shapes", "value"],
)
def test_only_failed_allocations_are_taken_for_lack_of_memory(problem, is_memory):
    assert is_out_of_memory(problem) is is_memory


def test_other_failures_of_a_step_stay_what_they_are(store, new_harness):
    trainer = new_harness().trainer()
    trainer._learner.step = lambda *_, **__: torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        trainer.run()


@pytest.mark.parametrize("stop_after", [2, 15])
def test_with_smaller_batches_it_goes_on_in_the_middle_of_a_window(store, new_harness, stop_after):
    """Epoch 1 is in its first window after 2 steps, epoch 2 in the whole store after 15."""
    harness = new_harness()
    harness.trainer(steps_until_stop=stop_after).run()
    before = harness.feed.trained
    smaller = new_harness(batch_samples=3)
    for stop in (stop_after + 2, None):  # interrupted once more, in the same window
        trainer = smaller.trainer(steps_until_stop=stop)
        assert trainer.restore()
        trainer.run()
        before += smaller.feed.trained
    assert set(before.values()) == {EPOCHS}
    assert len(before) == SAMPLES
    assert any("dealt out anew" in line for line in smaller.said)


@pytest.mark.parametrize("stop_after", [2, 15])
def test_samples_deleted_in_the_middle_of_a_window_leave_the_others_exactly_counted(store, new_harness, stop_after):
    harness = new_harness()
    harness.trainer(steps_until_stop=stop_after).run()
    before = harness.feed.trained
    gone = [5, 6, 17, 40]
    with store.commit():
        store._connection.execute(f"DELETE FROM samples WHERE seq IN ({','.join(map(str, gone))})")
    add_samples(store, made_samples(SAMPLES, len(gone)))  # expected samples are counted in the store
    last = harness.trainer()
    assert last.restore()
    harness.finish(last)
    counts = before + harness.feed.trained
    assert {seq: times for seq, times in counts.items() if times != EPOCHS}.keys() <= set(gone)
    left = {info.seq for info in store.sample_infos(role=Role.TRAIN)}
    if stop_after == 2:
        assert {seq for seq, times in counts.items() if times == EPOCHS} == left


def test_a_sample_that_is_planned_twice_or_forgotten_ends_training(store, new_harness):
    for name, plan in {
        "twice": lambda batches: [*batches, batches[0]],
        "not trained on": lambda batches: batches[1:],
    }.items():
        harness = new_harness(name.replace(" ", "-"))
        trainer = harness.trainer()
        batches = trainer._feed.batches
        trainer._feed.batches = lambda planned, plan=plan, batches=batches: batches(plan(planned))
        with pytest.raises(TrainingFailed, match=name):
            trainer.run()
