"""Several processes of one node give what one process gives."""

from __future__ import annotations

import signal

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from support.together import assert_same_training, be_stopped_in_step, change, die_in_step, metrics, saved, weights
from support.trainer_harness import made_samples

EXIT_PEER_LOST, EXIT_STOPPED = 75, 143


def test_two_ranks_train_what_one_process_trains(two_ranks, alone):
    assert min(line["samples"] for line in metrics(alone)) == 1, "no batch is smaller than the number of ranks"
    assert_same_training(two_ranks, alone)


def test_weights_of_samples_are_those_of_one_process(site):
    weighted = {"balance": "class", "expect_devices": None, "expect_samples": 31}
    samples = [*made_samples(0, 22), *made_samples(100, 18)[::2]]  # nine more of one class
    one, two = site.run("one", samples, **weighted), site.run("two", samples, ranks=2, **weighted)
    site.train(one)
    assert_same_training(site.train(two, two), one)


def test_the_published_adapter_of_two_ranks_loads_in_plain_peft(site, two_ranks):
    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(site.model, num_labels=2), two_ranks / "adapter"
    )
    learned = {name: value for name, value in model.named_parameters() if "lora_B" in name}
    assert {name.partition("layers.")[2].partition(".")[0] for name in learned} == {"1", "2", "3"}
    assert all(float(value.detach().abs().max()) > 0 for value in learned.values())


@pytest.mark.parametrize("victim", [0, 1])
def test_after_a_killed_rank_training_goes_on_to_the_same_result(site, two_ranks, victim):
    run = site.run("run", ranks=2)
    crew = site.start(run, run, before=lambda number: die_in_step(12) if number == victim else None)
    codes = crew.codes()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == EXIT_PEER_LOST
    assert f"rank {1 - victim} stops: rank {victim} does not answer any more" in crew.said()
    assert saved(run).progress.step == 11
    site.train(run, run)
    assert all(torch.equal(tensor, weights(two_ranks)[name]) for name, tensor in weights(run).items())
    assert [line["step"] for line in metrics(run)] == [line["step"] for line in metrics(two_ranks)]


def test_when_the_leader_is_told_to_stop_all_ranks_leave_and_another_number_of_ranks_goes_on(site, alone):
    run = site.run("run", ranks=2)
    crew = site.start(run, run, before=lambda number: be_stopped_in_step(6) if number == 0 else None)
    assert crew.codes() == [EXIT_STOPPED, 0]
    assert saved(run).progress.step == 6
    change(run, ranks=1)
    assert_same_training(site.train(run), alone)


def test_lifted_samples_reach_all_ranks(site):
    one, two = site.run("one", lora_first_layer=2, epochs=1), site.run("two", lora_first_layer=2, epochs=1, ranks=2)
    site.train(one)
    assert_same_training(site.train(two, two), one)
    assert (two / "lifted.sqlite").is_file()
