"""Which process does what: pure decisions, without any process."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sf_contract.activations import NO_TARGET
from sf_contract.errors import UsageError
from sf_model.back import PadSide
from sf_server.scale.orders import plan_as_numbers, plan_of_numbers
from sf_server.scale.place import Place, check_scale, place_of
from sf_server.scale.rank_learner import dropout_seed
from sf_server.scale.rounds import Notes, packed, unpack
from sf_server.scale.stages import cut_to_fit, divide_layers, padded_tokens
from sf_server.scale.states import packed_state, shapes_of, size_of_state, unpacked_state
from sf_server.settings import TrainSettings
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.learner import Part

SEQS = st.integers(1, 2**40)


def settings(**changes: object) -> TrainSettings:
    return msgspec.convert({"bundle": "b", "run": "r", **changes}, TrainSettings)


@given(st.lists(SEQS, max_size=40), st.integers(1, 7))
def test_the_shares_of_a_node_are_the_batch_each_sample_once(batch, ranks):
    shares = [Place(local_rank=rank, local_ranks=ranks).share(batch) for rank in range(ranks)]
    assert sorted(seq for share in shares for seq in share) == sorted(batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_stage_gets_the_whole_batch():
    place = Place(local_rank=1, local_ranks=2, is_staged=True)
    assert place.share([3, 1, 2]) == [3, 1, 2]


def test_ranks_are_counted_node_by_node_and_the_very_first_publishes():
    places = [
        place_of(settings(nodes=2, ranks=3, node_rank=node, rendezvous="127.0.0.1:1"), {"LOCAL_RANK": str(local)})
        for node in range(2)
        for local in range(3)
    ]
    assert [place.rank for place in places] == list(range(6))
    assert [place.leads for place in places] == [True, False, False] * 2
    assert [place.publishes for place in places] == [True] + [False] * 5
    assert str(places[4]) == "rank 1 of node 1"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pipeline_stages": 2, "ranks": 2}, "cannot be combined"),
        ({"pipeline_stages": 3, "pipeline_microbatches": 4}, "no multiple of --pipeline-stages 3"),
        ({"node_rank": 1}, "belong to --nodes"),
        ({"nodes": 2, "node_rank": 2, "rendezvous": "127.0.0.1:1"}, "not one of 2 nodes"),
        ({"nodes": 2}, "must know where to meet"),
        ({"nodes": 2, "rendezvous": "here"}, "not HOST:PORT"),
        ({"nodes": 2, "rendezvous": "10.0.0.1:29500"}, "in the clear"),
    ],
    ids=["stages-and-ranks", "microbatches", "node-rank", "outside", "nowhere", "no-port", "in-the-clear"],
)
def test_settings_that_contradict_one_another_are_refused(changes, complaint):
    with pytest.raises(UsageError, match=complaint):
        check_scale(settings(**changes))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_nodes_on_one_machine_need_no_trusted_network(host):
    check_scale(settings(nodes=2, rendezvous=f"{host}:29500"))
    check_scale(settings(nodes=2, rendezvous="10.0.0.1:29500", trusted_network=True))


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 12))
def test_stages_hold_all_layers_once_in_order_and_about_alike(first, count, stages):
    layers = first + count
    if count < stages:
        with pytest.raises(UsageError, match="cannot be divided"):
            divide_layers(first, layers, stages)
        return
    bounds = divide_layers(first, layers, stages)
    assert [layer for begin, end in bounds for layer in range(begin, end)] == list(range(first, layers))
    sizes = [end - begin for begin, end in bounds]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("side", list(PadSide))
def test_a_batch_for_stages_is_padded_on_its_side_and_added_samples_have_no_target(side):
    mask = torch.ones(3, 5, dtype=torch.int64)
    labels = torch.arange(15).reshape(3, 5)
    batch = BatchTensors(rows=torch.randn(3, 5, 2), mask=mask, labels=labels, tokens=15, weights=torch.ones(3))
    fit = cut_to_fit(batch, side, microbatches=4, most_tokens=64)
    real = slice(11, None) if side is PadSide.LEFT else slice(5)
    assert fit.rows.shape == (4, 16, 2)
    assert torch.equal(fit.rows[:3, real], batch.rows)
    assert torch.equal(fit.labels[:3, real], labels)
    assert fit.mask.sum().item() == 20
    assert int((fit.labels != NO_TARGET).sum()) == 15
    assert fit.weights is not None
    assert len(fit.weights) == 4


def test_padding_never_goes_beyond_what_the_model_takes():
    assert [padded_tokens(tokens, most=40) for tokens in (1, 16, 17, 33, 40, 50)] == [16, 16, 32, 40, 40, 50]


@given(st.lists(st.lists(SEQS, max_size=5), max_size=8), st.booleans())
def test_a_plan_arrives_as_it_was_told(plan, is_weighted):
    count = sum(map(len, plan))
    weights = np.linspace(0.1, 3, count, dtype=np.float32).tolist() if is_weighted else None
    assert plan_of_numbers(plan_as_numbers(plan, weights)) == (plan, weights)


def test_the_sum_of_shares_is_the_gradient_of_the_mean_over_all_targets():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 4, generator=generator)  # of each target's loss
    losses = torch.rand(6, generator=generator)
    total: torch.Tensor | None = None
    for share in ([0, 1, 2, 3], [4, 5], []):
        parameter = nn.Parameter(torch.zeros(4))
        parameter.grad = gradients[share].mean(0) if share else None
        loss = float(losses[share].mean()) if share else 0.0
        notes = Notes(targets=len(share), loss_sum=loss * len(share), trains=float(bool(share)))
        row = packed([parameter], Part(loss=loss, targets=len(share)), notes)
        total = row if total is None else total + row
    whole = nn.Parameter(torch.zeros(4))
    assert total is not None
    notes = unpack(total, [whole])
    torch.testing.assert_close(whole.grad, gradients.mean(0))
    assert notes.loss == pytest.approx(float(losses.mean()))
    assert (notes.targets, notes.trains) == (6, 2)


def test_the_learning_rate_of_nodes_falls_as_that_of_one_process_with_all_their_samples():
    nodes = [(100, 80), (1000, 10)]  # samples, done
    added = [
        sum(values)
        for values in zip(
            *(dataclasses.astuple(Notes(weight=n, weighted_factor=n * (1 - 0.9 * done / n))) for n, done in nodes),
            strict=True,
        )
    ]
    assert Notes(*added).rate_factor == pytest.approx(1 - 0.9 * 90 / 1100)


@pytest.mark.parametrize("steps", [0, 7])
def test_weights_and_the_optimizers_state_arrive_bit_for_bit(steps):
    parameters = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    optimizer = {
        name: {"step": torch.tensor(float(steps)), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        if steps
        else {}
        for name, p in parameters.items()
    }
    row = packed_state(parameters, optimizer)
    shapes = shapes_of(parameters)
    assert len(row) == size_of_state(shapes)
    found, states = unpacked_state(row, shapes)
    assert all(torch.equal(found[name], tensor) for name, tensor in parameters.items())
    assert states.keys() == (parameters.keys() if steps else set())
    for name, state in states.items():
        assert all(torch.equal(state[key], value) for key, value in optimizer[name].items())


def test_no_two_ranks_and_steps_draw_the_same_dropout():
    seeds = {dropout_seed(3, step=step, rank=rank) for step in range(50) for rank in range(8)}
    assert len(seeds) == 400
