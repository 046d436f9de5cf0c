"""A back end in stages, each in a process of its own, is the back end in one piece."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_contract.activations import NO_TARGET, EncodedSample
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.manifest import Task
from sf_contract.messages import Role
from support.tiny_models import HIDDEN, VOCABULARY
from support.together import Site, assert_same_training, bundle_for, change, die_in_step, metrics, saved, weights
from support.tolerances import FP32_RELATIVE

pytestmark = pytest.mark.slow

SCHEDULES = ("1f1b", "zero-bubble")
EXIT_PEER_LOST = 75


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, tiny_model, scale_bundle: Path) -> dict[str, Path]:
    """One run per schedule, over two processes."""
    site = Site(tmp_path_factory.mktemp("staged"), tiny_model("llama"), scale_bundle)
    runs = {name: site.run(name, pipeline_stages=2, pipeline_schedule=name) for name in SCHEDULES}
    for run in runs.values():
        site.train(run, run)
    return runs


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_stages_train_what_one_process_trains(staged, alone, schedule):
    assert_same_training(staged[schedule], alone)


def test_both_schedules_give_the_same_losses_and_weights_to_the_last_bit(staged):
    losses = [[line["loss"] for line in metrics(staged[name])] for name in SCHEDULES]
    assert losses[0] == losses[1]
    first, second = (weights(staged[name]) for name in SCHEDULES)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_checkpoint_of_stages_goes_on_in_one_piece_and_back(site, alone):
    run = site.run("run", epochs=1, pipeline_stages=2)
    site.train(run, run)
    change(run, epochs=2, pipeline_stages=1)
    assert_same_training(site.train(run), alone)
    assert saved(run).parameters.keys() == saved(alone).parameters.keys()
    change(run, epochs=3, pipeline_stages=3, pipeline_microbatches=3)
    site.train(run, run, run)
    assert set(weights(run)) == set(weights(alone))
    assert metrics(run)[-1]["loss"] < metrics(alone)[-1]["loss"]


def test_stages_train_completions_as_one_process_does_and_score_as_it_does(tmp_path, tiny_model):
    bundle = bundle_for(tiny_model("llama"), tmp_path / "bundle", task=Task.CAUSAL_LM)
    site = Site(tmp_path, tiny_model("llama"), bundle)
    samples = [*_completions(0, 12), *_completions(50, 5, Role.VALIDATION)]
    one = site.run("one", samples, validate=True, epochs=1)
    two = site.run("two", samples, validate=True, epochs=1, pipeline_stages=2)
    site.train(one)
    assert_same_training(site.train(two, two), one)
    found, wanted = (_validation(run) for run in (two, one))
    assert found["targets"] == wanted["targets"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=FP32_RELATIVE)
    assert found["accuracy"] == wanted["accuracy"]


def test_when_a_stage_is_killed_the_others_say_which(site):
    run = site.run("run", pipeline_stages=2)
    crew = site.start(run, run, before=lambda number: die_in_step(3) if number == 1 else None)
    assert crew.codes() == [EXIT_PEER_LOST, -signal.SIGKILL]
    assert "stage 0 stops: stage 1 does not answer any more" in crew.said()
    assert saved(run).progress.step == 2


def _completions(first: int, count: int, role: Role = Role.TRAIN) -> list[EncodedSample]:
    """Prompts of two tokens, and completions."""
    generator = np.random.default_rng(first)
    made = []
    for ordinal in range(first, first + count):
        tokens = 4 + ordinal % 5
        rows = generator.standard_normal((tokens, HIDDEN)).astype(np.float32)
        targets = generator.integers(0, VOCABULARY, tokens).astype(np.int32)
        targets[:2], targets[-1] = NO_TARGET, NO_TARGET
        encoded = encode_rows(rows, WireCodec.FP32)
        made.append(EncodedSample(ordinal=ordinal, role=role, rows=encoded, label=None, targets=targets))
    return made


def _validation(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if line["kind"] == "validation")
