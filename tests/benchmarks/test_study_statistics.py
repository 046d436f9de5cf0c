"""Dealing, relative losses and the studies' reports: computed by hand here, from made-up cells."""

from __future__ import annotations

import numpy as np
import pytest

from sf_bench.quality.dealing import deal_by_class, deal_in_turn
from sf_bench.quality.environment import describe_environment
from sf_bench.quality.phrases import PoolCounts
from sf_bench.quality.results import CompletionLoss, Effort, Evaluation, TrainingKey
from sf_bench.quality.statistics import compare, compare_scores, relative_losses
from sf_bench.studies.answers import Answers, same_tokens
from sf_bench.studies.completions import CompletionsCell
from sf_bench.studies.completions_report import completions_markdown, completions_report
from sf_bench.studies.cuts import CutsCell, DeviceAnswers
from sf_bench.studies.cuts_report import cuts_markdown, cuts_report
from sf_bench.studies.one_class import OneClassCell
from sf_bench.studies.one_class_report import one_class_markdown, one_class_report
from sf_bench.studies.report import Ground
from sf_contract.samples import TokenizedSample

KEY = TrainingKey(way="x", rows=(), base_weights_sha256="", inputs_sha256="", holders_sha256="", training={})
EFFORT = Effort(steps=7, tokens=70, seconds=1.0)
GROUND = Ground(
    base_model="tiny",
    split_layers=(2, 8),
    stated_errors=(0.01, 0.02),
    first_layer=8,
    samples=4,
    seeds=(0, 1),
    epochs=1,
    learning_rate=3e-4,
    batch_samples=16,
    validation=4,
    floor=0.5,
    pool=PoolCounts(rows=10, unusable=1, repeated=1, in_validation=1, too_long=1, left=6),
    environment=describe_environment(threads=1, jobs=2),
    command="sf-bench study",
)


def marks(signs: str) -> Evaluation:
    return Evaluation(hits=tuple(sign == "+" for sign in signs), loss=0.5)


def samples(labels: str) -> list[TokenizedSample]:
    return [TokenizedSample(token_ids=[1], label=int(label)) for label in labels]


def test_devices_in_turn_get_the_same_mixture():
    assert deal_in_turn(samples("01010101"), 3) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_device_of_one_class_holds_no_other_and_the_devices_of_a_class_share_it_evenly():
    dealt = samples("0110100011010110")
    holders = deal_by_class(dealt, 4, classes=2)
    assert all(sample.label == holder % 2 for sample, holder in zip(dealt, holders, strict=True))
    assert [holders.count(device) for device in range(4)] == [4, 4, 4, 4]


def test_devices_that_cannot_be_divided_among_the_classes_are_refused():
    with pytest.raises(ValueError, match="divided"):
        deal_by_class(samples("01"), 3, classes=2)
    with pytest.raises(ValueError, match="label"):
        deal_by_class([TokenizedSample(token_ids=[1])], 2, classes=2)


def test_parts_of_one_are_compared_as_hits_are():
    arm, reference = np.array([[True, False, True]]), np.array([[True, True, False]])
    assert compare(arm, reference) == compare_scores(arm.astype(float), reference.astype(float))
    assert compare_scores(np.array([[0.5, 1.0]]), np.array([[1.0, 1.0]])).mean == -25.0


def test_relative_losses_weigh_texts_by_their_tokens():
    found = relative_losses([[2.2, 9.0]], [[2.0, 8.0]], [2, 8])
    assert found.mean == pytest.approx(12.0)
    assert found.by_seed == pytest.approx((12.0,))
    assert (found.arm, found.reference) == pytest.approx((1.12, 1.0))


def test_the_interval_of_a_ratio_is_empty_when_every_text_says_the_same_and_grows_when_they_differ():
    same = relative_losses([[2.2, 4.4, 8.8]], [[2.0, 4.0, 8.0]], [1, 1, 1]).over_texts
    unlike = relative_losses([[2.0, 4.4, 9.0]], [[2.0, 4.0, 8.0]], [1, 1, 1]).over_texts
    assert same is not None
    assert unlike is not None
    assert (same.low, same.high) == pytest.approx((10.0, 10.0))
    assert unlike.high - unlike.low > 1.0


def test_the_interval_of_a_ratio_holds_the_true_ratio_as_often_as_it_says():
    generator = np.random.default_rng(5)
    inside = 0
    for _ in range(300):
        reference = generator.gamma(5.0, size=60)
        arm = reference * 1.02 + generator.normal(0, 0.3, size=60)
        found = relative_losses([arm.tolist()], [reference.tolist()], [1] * 60).over_texts
        assert found is not None
        inside += found.low <= 2.0 <= found.high
    assert 0.91 <= inside / 300 <= 0.98


def cuts_cell(way: str, seed: int, *, devices: list[str], alone: str) -> CutsCell:
    answers = tuple(
        DeviceAnswers(split_layer=cut, stated_error=0.02, answers=marks(signs), like_alone=0.75)
        for cut, signs in zip((2, 8), devices, strict=False)
    )
    return CutsCell(key=KEY, way=way, seed=seed, devices=answers, alone=marks(alone), effort=EFFORT)


def test_mixed_cuts_are_judged_by_the_mean_over_their_devices():
    mixed = [cuts_cell("mixed", 0, devices=["++--", "++++"], alone="++++")]
    single = [cuts_cell("single", 0, devices=["++++"], alone="+++-")]
    report = cuts_report(GROUND, {"mixed": mixed, "single": single})
    assert report.devices_difference is not None
    assert report.alone_difference is not None
    assert report.devices_difference.mean == -25.0
    assert report.alone_difference.mean == 25.0
    assert report.is_within_target is False
    markdown = cuts_markdown(report)
    assert "It is not met" in markdown
    assert "cut 8, own front end" in markdown
    assert "LoRA from layer 8 on" in markdown


def test_a_report_of_one_way_decides_nothing():
    report = cuts_report(GROUND, {"mixed": [cuts_cell("mixed", 0, devices=["++"], alone="++")]})
    assert report.is_within_target is None
    assert "Aim" not in cuts_markdown(report)


def one_class_cells(way: str, *signs: str) -> list[OneClassCell]:
    return [
        OneClassCell(key=KEY, way=way, seed=seed, own=marks(one), alone=marks(one), effort=EFFORT)
        for seed, one in enumerate(signs)
    ]


def test_one_class_per_device_is_decided_by_pooled_against_centralised_and_shows_the_floor():
    cells = {
        "pooled": one_class_cells("pooled", "+++-", "++++"),
        "central": one_class_cells("central", "+++-", "+++-"),
        "no-pool": one_class_cells("no-pool", "--++", "++--"),
    }
    report = one_class_report(GROUND, cells, devices=4)
    assert report.differences["pooled - central"].by_seed == (0.0, 25.0)
    assert report.differences["central - no-pool"].mean == 25.0
    assert report.is_within_target is True
    markdown = one_class_markdown(report)
    assert "| always the commonest answer" in markdown
    assert "50.00 %" in markdown


def completions_cells(way: str, *losses: tuple[float, ...], answers: Answers | None = None) -> list[CompletionsCell]:
    return [
        CompletionsCell(
            key=KEY, way=way, seed=seed,
            own=CompletionLoss(loss_sums=sums, targets=(1, 1)), alone=CompletionLoss(loss_sums=sums, targets=(1, 1)),
            answers=answers, effort=EFFORT,
        )
        for seed, sums in enumerate(losses)
    ]  # fmt: skip


def test_answers_are_the_same_up_to_the_first_token_that_differs_or_is_missing():
    assert same_tokens((1, 2, 3), (1, 2, 3)) == 3
    assert same_tokens((1, 2, 3), (1, 5, 3)) == 1
    assert same_tokens((1, 2, 3), (1, 2)) == 2
    assert same_tokens((1, 2), (1, 2, 3)) == 2


@pytest.mark.parametrize(("loss", "is_within"), [(1.005, True), (1.02, False), (0.9, True)])
def test_completions_are_within_the_aim_up_to_one_percent(loss: float, is_within: bool):
    answers = Answers(tokens=(5, 6), same=(5, 2), widest_gap=0.25)
    cells = {
        "split": completions_cells("split", (loss, loss), answers=answers),
        "central": completions_cells("central", (1.0, 1.0)),
    }
    report = completions_report(GROUND, cells)
    assert report.is_within_target is is_within
    assert "1 of 2 greedy answers (11 tokens)" in completions_markdown(report)
