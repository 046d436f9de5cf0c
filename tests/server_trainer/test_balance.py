"""How much samples count: formula, bounds, and that it reaches the loss."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from sf_contract.activations import NO_TARGET
from sf_server.store.stored import SampleInfo
from sf_server.training.balance import LARGEST_RATIO, WindowWeights, sample_weights
from sf_server.training.objective import judge
from support.trainer_harness import SAMPLES, Harness, add_samples, made_samples, open_store

GROUPS = st.lists(st.integers(0, 4), min_size=1, max_size=300)


def _infos(groups: list[int]) -> list[SampleInfo]:
    return [SampleInfo(seq=3 * i + 1, device=f"d{group}", tokens=3, label=group) for i, group in enumerate(groups)]


@given(GROUPS, st.sampled_from(["device", "class", "none"]))
def test_the_mean_weight_is_one_and_none_exceeds_another_tenfold(groups, balance):
    weights = sample_weights(_infos(groups), balance)
    assert weights.mean() == pytest.approx(1, abs=1e-5)
    assert weights.max() <= LARGEST_RATIO * weights.min() * (1 + 1e-5)


def test_groups_of_unlike_size_count_the_same_in_sum():
    infos = _infos([0] * 60 + [1] * 30 + [2] * 10)
    sums: dict[str, float] = defaultdict(float)
    for info, weight in zip(infos, sample_weights(infos, "device"), strict=True):
        sums[info.device] += float(weight)
    assert list(sums.values()) == pytest.approx([100 / 3] * 3, rel=1e-5)


def test_a_very_rare_class_counts_ten_times_as_much_and_not_more():
    weights = sample_weights(_infos([0] * 1000 + [1]), "class")
    assert weights[-1] / weights[0] == pytest.approx(LARGEST_RATIO)


def test_classes_and_devices_are_told_apart():
    infos = [SampleInfo(seq=i, device="one", tokens=3, label=int(i < 3)) for i in range(12)]
    assert np.array_equal(sample_weights(infos, "device"), np.ones(12, dtype=np.float32))
    assert sample_weights(infos, "class")[0] == pytest.approx(2)


def test_weights_are_found_by_seq():
    infos = _infos([0, 0, 0, 1])
    window = WindowWeights(infos, "device")
    assert window.of([infos[3].seq, infos[0].seq]) == pytest.approx([2, 2 / 3])
    assert WindowWeights(infos, "none").of([1]) is None


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3)], ids=["classes", "tokens"])
def test_a_weight_multiplies_the_losses_of_its_samples_targets(shape):
    torch.manual_seed(0)
    logits = torch.randn(shape)
    labels = torch.randint(0, 3, shape[:-1])
    if len(shape) == 3:
        labels[0, 2:] = NO_TARGET
        labels[3, 0] = NO_TARGET
    weights = torch.tensor([2.0, 0.5, 0.0, 1.5])
    wanted = sum(
        weight * cross_entropy(logits[i], labels[i], ignore_index=NO_TARGET, reduction="sum")
        for i, weight in enumerate(weights)
    )
    targets = int((labels != NO_TARGET).sum())
    assert float(judge(logits, labels, weights).loss) == pytest.approx(float(wanted) / targets, rel=1e-6)
    assert float(judge(logits, labels, torch.ones(4)).loss) == pytest.approx(
        float(judge(logits, labels).loss), rel=1e-6
    )


def test_the_trainer_gives_every_batch_the_weights_of_its_window(tmp_path, tiny_model):
    with open_store(tmp_path / "store.sqlite", devices=("d", "e")) as store:
        add_samples(store, made_samples(0, 40), "d")
        add_samples(store, made_samples(40, SAMPLES - 40), "e")
        harness = Harness(tmp_path / "run", store, tiny_model("llama"), balance="device", epochs=1, window_samples=64)
        trainer = harness.trainer()
        step = trainer._learner.step
        seen: list[torch.Tensor] = []

        def watched(batch, *, rate_factor):
            seen.append(batch.weights)
            return step(batch, rate_factor=rate_factor)

        trainer._learner.step = watched
        harness.finish(trainer)
        harness.logs[0].close()
    given = {
        seq: float(weight)
        for seqs, weights in zip(harness.feed.batches_trained, seen, strict=True)
        for seq, weight in zip(seqs, weights, strict=True)
    }
    assert given == {seq: pytest.approx(50 / 80 if seq <= 40 else 50 / 20) for seq in range(1, SAMPLES + 1)}
