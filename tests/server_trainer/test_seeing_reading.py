"""The state of a run, read from its folder again and again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sf_contract.errors import UsageError
from sf_contract.messages import Role
from sf_server.seeing.curves import LossCurve
from sf_server.seeing.metrics_tail import MetricsTail
from sf_server.seeing.model_record import read_layer_weights, write_model_record
from sf_server.seeing.reading import RunReader
from sf_server.seeing.savings import forward_flops, layer_weights, savings
from sf_server.seeing.state import DeviceStatus, Phase, RunState, to_json
from sf_server.store.removal import Remover
from support.seen_run import HIDDEN, TOKENS, WIDTH, SeenRun

START_S = 1_000_000.0
LAYER = 12 * WIDTH * WIDTH


class Clock:
    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[SeenRun]:
    made = SeenRun(tmp_path, now_s=START_S, cuts=(2, 8))
    yield made
    made.close()


@pytest.fixture
def reader(run: SeenRun, clock: Clock) -> Iterator[RunReader]:
    with RunReader(run.path, clock=clock) as opened:
        yield opened


def _statuses(state: RunState) -> dict[str, str]:
    return {device.name: device.status.value for device in state.devices}


def test_a_run_without_anything_has_a_state(run: SeenRun, reader: RunReader) -> None:
    state = reader.read()
    assert (state.phase, state.devices, state.loss_curve, state.store.train_samples) == (Phase.STOPPED, (), (), 0)
    assert [bundle.cut for bundle in state.run.bundles] == [2, 8]
    assert (state.run.address, state.run.expect_devices) == ("tcp://127.0.0.1:5555", 8)


def test_there_must_be_a_run(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(UsageError, match="there is no run"):
        RunReader(tmp_path / "none", clock=clock)


def test_the_phase_follows_the_lock_the_steps_and_the_adapter(run: SeenRun, reader: RunReader, clock: Clock) -> None:
    with run.worked_on():
        assert reader.read().phase is Phase.WAITING
        run.hello("a", cut=2)
        run.samples("a", 300, cut=2)
        run.steps(3, epoch=1)
        assert reader.read().phase is Phase.TRAINING
        clock.now_s += 60
        assert reader.read().phase is Phase.WAITING  # 252 are left, a window is 256
        run.samples("a", 10, cut=2, start=300)
        assert reader.read().phase is Phase.TRAINING
    assert reader.read().phase is Phase.STOPPED
    run.done()
    assert reader.read().phase is Phase.DONE


def test_asking_who_works_on_a_run_does_not_keep_anybody_from_it(run: SeenRun, reader: RunReader) -> None:
    run.folder.lock_path.touch()
    reader.read()
    with run.worked_on():
        assert reader.read().phase is Phase.WAITING


def test_devices_tell_what_they_do(run: SeenRun, reader: RunReader, clock: Clock) -> None:
    for name in ("done", "gone", "held", "idle", "busy"):
        run.hello(name, cut=8 if name == "busy" else 2)
    run.samples("done", 4, cut=2)
    run.heard("busy", bytes_in=3000)
    reader.read()
    clock.now_s += 40
    run.finished("done", skipped=3, now_s=clock.now_s)
    for name in ("held", "idle", "busy"):
        run.heard(name, now_s=clock.now_s, activity="paused: battery at 12 %" if name == "held" else None, rejected=1)
    run.samples("busy", 80, cut=8)
    state = reader.read()
    assert _statuses(state) == {
        "done": "finished", "gone": "gone", "held": "paused", "idle": "waiting", "busy": "sending",
    }  # fmt: skip
    by_name = {device.name: device for device in state.devices}
    assert by_name["held"].reason == "paused: battery at 12 %"
    assert by_name["idle"].reason == ""
    assert (by_name["busy"].cut, by_name["idle"].cut) == (8, 2)
    assert (by_name["busy"].samples, by_name["busy"].samples_per_s, by_name["busy"].bytes_in) == (80, 2.0, 3000)
    assert (by_name["done"].skipped, by_name["busy"].rejected) == (3, 1)


def test_a_device_that_was_not_watched_yet_has_no_rate(run: SeenRun, reader: RunReader) -> None:
    run.hello("a", cut=2)
    run.samples("a", 5, cut=2)
    (device,) = reader.read().devices
    assert (device.samples_per_s, device.status) == (None, DeviceStatus.SENDING)


def test_the_store_is_counted_and_counted_anew_when_something_was_removed(run: SeenRun, reader: RunReader) -> None:
    for name in ("a", "b"):
        run.hello(name, cut=2)
        run.samples(name, 30, cut=2)
    run.samples("a", 7, cut=2, start=30, role=Role.VALIDATION)
    store = reader.read().store
    assert (store.train_samples, store.validation_samples, store.train_tokens) == (60, 7, 60 * TOKENS)
    run.samples("a", 5, cut=2, start=40)
    assert reader.read().store.train_samples == 65
    with Remover(run.folder.store_path) as remover:
        remover.remove_device("a", now_s=1.0)
    state = reader.read()
    assert (state.store.train_samples, state.store.validation_samples) == (30, 0)
    assert [device.name for device in state.devices] == ["b"]
    assert 0 < state.store.used_bytes <= state.store.file_bytes < state.store.quota_bytes


def test_progress_is_that_of_the_last_step(run: SeenRun, reader: RunReader, clock: Clock) -> None:
    run.hello("a", cut=2)
    run.samples("a", 160, cut=2)
    run.steps(10, epoch=1, tokens=600)
    state = reader.read()
    assert (state.progress.step, state.progress.epoch, state.progress.part_done) == (10, 1, None)
    assert state.queue.untrained == 0
    assert state.progress.learning_rate == pytest.approx(0.8 * run.settings.learning_rate)
    assert state.progress.tokens_per_s == pytest.approx(6000 / 9.9)
    run.skipped_step(epoch=2)
    clock.now_s += 30
    run.steps(5, epoch=2, until_s=clock.now_s, tokens=300)
    state = reader.read()
    assert (state.progress.skipped_steps, state.progress.samples_trained) == (1, 240)
    assert state.progress.part_done == pytest.approx(240 / 480)
    assert state.progress.tokens_per_s == pytest.approx(7500 / 39.9)
    clock.now_s += 100
    assert reader.read().progress.tokens_per_s == 0
    assert all(math.isfinite(point.loss) for point in state.loss_curve)
    assert len(state.loss_curve) == 15
    assert json.loads(to_json(state))["progress"]["step"] == 16


def test_a_resumed_trainer_that_goes_back_is_followed(run: SeenRun, reader: RunReader) -> None:
    run.steps(10, epoch=1)
    assert reader.read().progress.tokens_trained == 6000
    lines = run.folder.metrics_path.read_bytes().splitlines(keepends=True)
    run.folder.metrics_path.write_bytes(b"".join(lines[:4]))
    run.step = 4
    assert reader.read().progress.step == 4
    run.steps(2, epoch=1)
    state = reader.read()
    assert (state.progress.step, state.progress.tokens_trained, len(state.loss_curve)) == (6, 3600, 6)


def test_steps_that_come_again_between_two_looks_are_counted_once(tmp_path: Path) -> None:
    """The file was cut back and has grown beyond its former length before anybody looked."""
    path = tmp_path / "metrics.jsonl"
    line = '{{"kind": "step", "step": {}, "tokens": 10, "loss": 1.0, "epoch": 1}}\n'.format
    path.write_text("".join(map(line, range(1, 10))))
    tail = MetricsTail(path)
    assert tail.follow().tokens == 90
    with path.open("r+") as stream:
        stream.truncate(len(line(1)) * 3)
        stream.seek(0, 2)
        stream.writelines(20 * " " + line(step) for step in range(4, 13))
    assert tail.follow().tokens == 120
    tail.close()


def test_lines_that_are_damaged_or_not_finite_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"kind": "step", "step": 1, "loss": NaN}\nnonsense\n[1]\n{"kind": "step", "step": "x"}\n{"kind": "st'
    )
    tail = MetricsTail(path)
    summary = tail.follow()
    assert (summary.last_step.step if summary.last_step else None, summary.loss_curve()) == (1, ())
    with path.open("ab") as stream:
        stream.write(b'ep", "step": 2, "loss": 0.5}\n')
    assert [point.loss for point in tail.follow().loss_curve()] == [0.5]
    tail.close()


@pytest.mark.parametrize("steps", [1, 7, 8, 100, 1001])
def test_a_curve_stays_small_and_keeps_its_mean(steps: int) -> None:
    curve = LossCurve(max_points=8)
    for step in range(1, steps + 1):
        curve.add(step=step, epoch=1, loss=float(step))
    points = curve.points()
    assert len(points) <= 8
    assert points[-1].step == steps
    assert [point.loss for point in points] == sorted(point.loss for point in points)
    width = points[0].step
    assert points[0].loss == pytest.approx((1 + width) / 2)


def test_layers_are_counted_by_the_first_number_in_their_names() -> None:
    shapes = {
        "model.embed_tokens.weight": (50, 4),
        "model.layers.0.mlp.up.weight": (8, 4),
        "model.layers.0.norm.weight": (4,),
        "model.layers.1.experts.7.weight": (2, 3),
        "transformer.h.1.attn.bias": (1, 1, 64, 64),
    }
    assert layer_weights(shapes) == (32, 6)
    assert layer_weights({}) == ()


def test_flops_are_twice_the_weights_below_the_cut() -> None:
    assert forward_flops(cut=2, hidden=4, weights=(10, 20, 40)) == (60.0, True)
    assert forward_flops(cut=2, hidden=4, weights=()) == (2 * 2 * 12 * 16, False)


def test_savings_are_passes_that_were_not_needed() -> None:
    saved = savings(flops_per_token=10, is_estimated=False, bytes_per_token=3, tokens_trained=300, later_tokens=200)
    assert (saved.forward_flops, saved.backward_flops, saved.spent_flops, saved.upload_bytes) == (2000, 3000, 1000, 600)
    assert saved.part == pytest.approx(5 / 6)


def test_what_was_saved_counts_every_device_by_its_cut(run: SeenRun, reader: RunReader) -> None:
    write_model_record(run.path, {f"layers.{n}.mlp.weight": (n + 1, 1000) for n in range(30)})
    assert read_layer_weights(run.path)[:2] == (1000, 2000)
    run.hello("weak", cut=2)
    run.samples("weak", 30, cut=2)
    run.hello("strong", cut=8)
    run.samples("strong", 10, cut=8)
    run.heard("weak", bytes_in=40 * TOKENS * HIDDEN)
    run.steps(2, epoch=1, tokens=100)
    run.steps(4, epoch=2, tokens=100)
    saved = reader.read().savings
    per_token = 2 * (0.75 * 3000 + 0.25 * 36_000)
    assert not saved.is_estimated
    assert saved.forward_flops == pytest.approx(400 * per_token)
    assert saved.backward_flops == pytest.approx(600 * per_token)
    assert saved.spent_flops == pytest.approx(200 * per_token)
    assert saved.upload_bytes == pytest.approx(400 * HIDDEN)


def test_without_the_trainers_record_the_compute_is_estimated(run: SeenRun, reader: RunReader) -> None:
    state = reader.read()
    assert state.savings.is_estimated
    assert [bundle.forward_flops_per_token for bundle in state.run.bundles] == [4.0 * LAYER, 16.0 * LAYER]


def test_reading_changes_nothing_in_the_folder(run: SeenRun, reader: RunReader, clock: Clock) -> None:
    run.hello("a", cut=2)
    run.samples("a", 30, cut=2)
    run.steps(3, epoch=1)

    def contents() -> dict[str, Any]:
        return {
            path.name: path.read_bytes()
            for path in run.path.rglob("*")
            if path.is_file() and not path.name.endswith("-shm")
        }

    before = contents()
    for _ in range(3):
        clock.now_s += 1
        reader.read()
    assert contents() == before
