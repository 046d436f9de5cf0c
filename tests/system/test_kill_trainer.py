"""kill -9 of a real trainer process at seeded moments, on a store that is complete: the result is the same to the last bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from sf_contract.messages import Role
from support.mortal_trainer import Death, Life
from support.trainer_harness import EPOCHS, SAMPLES, add_samples, made_samples, open_store

pytestmark = pytest.mark.slow

KILLS = 20
OF_THEM_BY_THE_CLOCK = 6
TESTS = Path(__file__).parents[1]

Live = Callable[..., Death]


@pytest.fixture
def live(tmp_path, tiny_model) -> Iterator[Live]:
    """Lets a trainer process live once in a folder."""
    with open_store(tmp_path / "store.sqlite") as store:
        add_samples(store, made_samples(0, SAMPLES))
        add_samples(store, made_samples(1000, 12, Role.VALIDATION))
    command = [sys.executable, "-m", "support.mortal_trainer", tiny_model("llama"), tmp_path / "store.sqlite"]
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def once(name: str, **moment: object) -> Death:
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            process.stdin.write(msgspec.json.encode(Life(folder=str(folder), **moment)).decode() + "\n")
            process.stdin.flush()
            return msgspec.json.decode(process.stdout.readline(), type=Death)

        yield once
        process.stdin.close()


def _last_state(folder: Path) -> bytes:
    """Weights, optimizer, random state and marks of the last checkpoint, as the file holds them."""
    return (max((folder / "checkpoints").glob("step-*")) / "tensors.safetensors").read_bytes()


def _lines(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def _assert_same_result(folder: Path, whole: Path) -> None:
    assert _last_state(folder) == _last_state(whole), folder.name
    for key in ("step", "loss", "samples_trained"):
        assert [line[key] for line in _lines(folder, "step")] == [line[key] for line in _lines(whole, "step")]
    assert [line["epoch"] for line in _lines(folder, "validation")] == list(range(1, EPOCHS + 1))


def test_after_twenty_kills_the_result_is_bit_identical_to_that_of_an_uninterrupted_run(tmp_path, live):
    uninterrupted = live("whole")
    assert uninterrupted.how == "done"
    assert uninterrupted.events > 100
    moments = random.Random(2024)
    runs, kills = ["run-0"], 0
    while kills < KILLS:
        if kills < OF_THEM_BY_THE_CLOCK:
            death = live(runs[-1], after_s=moments.uniform(0, uninterrupted.seconds / 2))
        else:
            death = live(runs[-1], event=moments.randint(1, uninterrupted.events // 3))
        assert death.how in {"killed", "done"}
        kills += death.how == "killed"
        if death.how == "done":
            runs.append(f"run-{len(runs)}")
    assert live(runs[-1]).how == "done"
    for name in runs:
        _assert_same_result(tmp_path / name, tmp_path / "whole")
    assert not list(tmp_path.glob("run-*/checkpoints/.*")), "half checkpoints are left behind"


def test_sigterm_at_any_moment_saves_and_leaves_and_loses_no_step(tmp_path, live):
    uninterrupted = live("whole")
    moments = random.Random(7)
    for _ in range(5):
        death = live("run", event=moments.randint(1, uninterrupted.events // 4), number=signal.SIGTERM)
        if death.how == "done":
            break
        assert death.how == "stopped"
        steps = [line["step"] for line in _lines(tmp_path / "run", "step")]
        saved = max((tmp_path / "run" / "checkpoints").glob("step-*"))
        assert json.loads((saved / "state.json").read_text())["step"] == max(steps, default=0)
    assert live("run").how == "done"
    _assert_same_result(tmp_path / "run", tmp_path / "whole")
