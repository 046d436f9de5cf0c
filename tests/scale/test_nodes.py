"""Several nodes, each with samples of its own, train one adapter."""

from __future__ import annotations

import signal

import pytest
import torch

from sf_contract.errors import AddressInUse
from sf_server.scale.world import listen_on
from support.together import assert_same_training, be_stopped_in_step, change, die_in_step, metrics, saved
from support.trainer_harness import made_samples

EPOCHS = 2
EXIT_MISMATCH, EXIT_PEER_LOST, EXIT_STOPPED = 14, 75, 143


def trained(run) -> int:
    return sum(int(line["samples"]) for line in metrics(run))


def assert_same_state(first, second) -> None:
    states = saved(first), saved(second)
    assert states[0].progress.step == states[1].progress.step
    assert states[0].parameters.keys() == states[1].parameters.keys()
    for name, tensor in states[0].parameters.items():
        assert torch.equal(tensor, states[1].parameters[name]), name


def test_unequal_nodes_train_all_their_samples_exactly_epochs_times_and_learn_the_same(site):
    large, small = site.nodes("node", made_samples(0, 28), made_samples(100, 12))
    with listen_on("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    site.start(large, small, address=f"tcp://127.0.0.1:{port}").succeed()
    assert (trained(large), trained(small)) == (28 * EPOCHS, 12 * EPOCHS)
    assert saved(small).progress.samples_trained == 12 * EPOCHS
    assert len(metrics(small)) < len(metrics(large)) == saved(small).progress.step
    assert_same_state(large, small)
    assert (large / "adapter").is_dir()
    assert not (small / "adapter").exists()


def test_a_node_without_samples_takes_part_until_the_others_are_done(site, alone):
    full, empty = site.nodes("node", made_samples(0, 40), [])
    site.train(full, empty)
    assert not metrics(empty)
    assert_same_state(full, empty)
    assert_same_training(full, alone)


def test_a_batch_is_that_of_all_nodes_and_counts_each_of_their_samples_alike(site):
    """Both nodes' first batches in one, trained by one process, give the loss that both report for their first step."""
    first, second = made_samples(0, 4), made_samples(100, 4)
    settings = {"batch_samples": 8, "epochs": 1, "window_samples": 8}
    parts = site.nodes("node", first, second, **settings)
    site.train(*parts)
    whole = site.train(site.run("whole", [*first, *second], **settings))
    losses = [metrics(run)[0]["loss"] for run in (*parts, whole)]
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) < 1e-6 * losses[2]


@pytest.mark.slow
def test_after_a_killed_node_all_go_on_from_the_newest_step_that_all_have(site):
    parts = made_samples(0, 28), made_samples(100, 12)
    whole, nodes = site.nodes("whole", *parts), site.nodes("node", *parts)
    site.train(*whole)
    crew = site.start(*nodes, before=lambda number: die_in_step(9) if number == 1 else None)
    assert crew.codes() == [EXIT_PEER_LOST, -signal.SIGKILL]
    assert "rank 0 of node 0 stops: rank 0 of node 1 does not answer any more" in crew.said()
    newest = max((nodes[0] / "checkpoints").glob("step-*"))
    newest.rename(newest.with_name("step-0000000099"))  # a step that only this node has
    site.train(*nodes)
    for found, wanted in zip(nodes, whole, strict=True):
        assert_same_state(found, wanted)
        assert trained(found) == trained(wanted)


def test_a_node_without_a_checkpoint_is_named_when_others_have_some(site):
    nodes = site.nodes("node", made_samples(0, 10), made_samples(100, 10))
    site.train(*nodes)
    for checkpoint in (nodes[1] / "checkpoints").iterdir():
        checkpoint.rename(nodes[1] / checkpoint.name)
    crew = site.start(*nodes)
    assert crew.codes() == [EXIT_MISMATCH, EXIT_MISMATCH]
    assert "node 1 has no checkpoint" in crew.said()


def test_when_one_node_is_told_to_stop_all_stop_after_the_same_step(site):
    nodes = site.nodes("node", made_samples(0, 28), made_samples(100, 12))
    crew = site.start(*nodes, before=lambda number: be_stopped_in_step(5) if number == 1 else None)
    assert crew.codes() == [EXIT_STOPPED, EXIT_STOPPED]
    assert saved(nodes[0]).progress.step in {5, 6}
    assert_same_state(*nodes)


def test_a_node_with_other_settings_is_named(site):
    nodes = site.nodes("node", made_samples(0, 10), made_samples(100, 10))
    change(nodes[1], seed=5)
    crew = site.start(*nodes)
    assert crew.codes() == [EXIT_MISMATCH, EXIT_MISMATCH]
    assert "node 1 trains with other bundles or settings than node 0" in crew.said()


def test_the_rendezvous_listens_on_its_own_address_and_says_when_it_cannot():
    with listen_on("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(AddressInUse, match=f"cannot listen on 127.0.0.1:{port}"):
            listen_on(host, port)
