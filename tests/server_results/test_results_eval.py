"""Scores: the numbers are right, for each front end, each device and each class."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from sf_contract.activations import NO_TARGET, EncodedSample
from sf_contract.limits import MIB
from sf_contract.messages import Role
from sf_contract.samples import tokenize
from sf_contract.tokenizer import open_tokenizer
from sf_server.main import main
from sf_server.results.exact_match import answer_rule
from sf_server.results.text_front import FrontKind, open_text_front
from sf_server.store.store import Store
from sf_server.training.validation import Score, class_scores, macro_f1
from support.finished_run import finished_run


def _confusion(answers: list[int], predictions: list[int]) -> Counter[tuple[int, int]]:
    return Counter(zip(answers, predictions, strict=True))


def test_precision_recall_and_f1_are_those_of_the_textbook():
    confusion = _confusion([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 1])
    scores = class_scores(confusion)
    assert (scores[0].precision, scores[0].recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (scores[1].precision, scores[1].recall) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    assert (scores[2].samples, scores[2].precision, scores[2].recall, scores[2].f1) == (1, 0, 0, 0)
    assert scores[1].f1 == pytest.approx(2 * (1 / 3 * 1 / 2) / (1 / 3 + 1 / 2))
    assert macro_f1(confusion) == pytest.approx((2 / 3 + 0.4 + 0) / 3)


def test_always_the_same_answer_has_a_low_macro_f1_however_accurate_it_is():
    confusion = _confusion([0] * 9 + [1], [0] * 10)
    assert macro_f1(confusion) == pytest.approx((18 / 19) / 2)


def test_scores_of_two_parts_add_up():
    one, two = Score(), Score()
    for score, device, answer in ((one, "a", 0), (two, "a", 1), (two, "b", 1)):
        for tally in (score.whole, score.by_device[device]):
            tally.targets, tally.hits = tally.targets + 1, tally.hits + answer
            tally.confusion[answer, 1] += 1
        score.samples += 1
        score.answers[answer] += 1
    one.add(two)
    assert (one.samples, one.whole.hits, one.by_device["a"].targets, one.by_device["b"].hits) == (3, 2, 2, 1)
    assert one.floor == pytest.approx(2 / 3)
    assert one.whole.confusion == {(0, 1): 1, (1, 1): 2}


def test_a_file_is_scored_through_every_bundle_and_in_fp32_and_by_column(classifying_run, labelled_file, capsys):
    run = str(classifying_run.folder.path)
    assert main(["eval", "--run", run, "--data", str(labelled_file), "--by", "site", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert len(scores) == 3
    assert {name.split()[0] for name in scores} == {"bundle", "fp32"}
    fp32 = scores["fp32"]
    assert set(fp32["by_device"]) == {"s0", "s1"}
    assert set(fp32["classes"]) == {"off", "on", "dim"}
    assert sum(score["samples"] for score in fp32["classes"].values()) == fp32["samples"] == 20
    assert 0 < fp32["f1_macro"] < 1
    for score in scores.values():
        assert score["loss"] == pytest.approx(fp32["loss"], rel=0.05)
        assert score["loss"] != fp32["loss"] or score is fp32
    assert main(["eval", "--run", run, "--data", str(labelled_file)]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "macro-F1" in line]) == 3


def test_held_out_samples_go_through_the_back_end_of_their_own_bundle(
    classifying_run, tmp_path, texts, capsys, tiny_model
):
    """Rows of cut 1 entered at cut 3 would be nonsense; the loss shows that they are not."""
    pieces = finished_run(
        tmp_path / "run", model=tiny_model("llama"), bundles=[b.folder for b in classifying_run.bundles]
    )
    with Store.open(pieces.folder.store_path, max_bytes=8 * MIB) as store:
        for number, bundle in enumerate(pieces.bundles):
            rows_of = open_text_front(pieces, FrontKind.BUNDLE, bundle)
            tokenizer = open_tokenizer(bundle)
            samples = [
                EncodedSample(
                    ordinal=n,
                    role=Role.VALIDATION,
                    rows=rows_of(tokenizer.encode(text, special_tokens=True, max_tokens=None)),
                    label=n % 3,
                )
                for n, text in enumerate(texts)
            ]
            sender = {"device": f"pi-{number}", "outbox": f"{number}" * 32, "bundle_id": bundle.bundle_id}
            store.note_hello(**sender, self_test_error=0.0, waiting_samples=0, now_s=1.0)
            store.add(**sender, samples=samples)
    assert main(["eval", "--run", str(pieces.folder.path), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)["held-out"]
    shallow, deep = score["by_device"]["pi-0"], score["by_device"]["pi-1"]
    assert score["samples"] == 40
    assert shallow["loss"] == pytest.approx(deep["loss"], rel=0.02)


def test_exact_match_is_the_part_of_completions_that_the_model_makes_itself(completing_run, tmp_path, texts, capsys):
    run = str(completing_run.folder.path)
    assert main(["generate", "--run", run, "--max-new-tokens", "3", "--json", *texts[:4]]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wrong = {"prompt": texts[4], "completion": "nothing of the kind"}
    data = tmp_path / "data.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": row["prompt"], "completion": row["completion"]}) + "\n" for row in [*rows, wrong])
    )
    argv = ["eval", "--run", run, "--data", str(data), "--exact-match", "--max-new-tokens", "3", "--json"]
    assert main(argv) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"bundle", "fp32"}
    assert scores["bundle"]["exact_match"] == pytest.approx(4 / 5)
    assert scores["bundle"]["perplexity"] == pytest.approx(np.exp(scores["bundle"]["loss"]))
    assert "f1_macro" not in scores["bundle"]


def test_only_what_the_pattern_names_is_compared():
    rule = answer_rule(r"#### (.*)", max_new_tokens=9)
    assert rule.answer_in("3 and 4 are 7\n#### 7 \nmore") == "7"
    assert rule.answer_in("no answer") is None
    assert answer_rule(None, max_new_tokens=9).answer_in(" all of it\n") == "all of it"


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["--exact-match"], 2, "--exact-match needs"),
        (["--exact-match", "--answer-pattern", "(", "--data", "x.jsonl"], 2, "correct the regular expression"),
        (["--exact-match", "--answer-pattern", "x", "--data", "x.jsonl"], 2, "has no group"),
        (["--data", "nowhere.jsonl"], 12, "nowhere.jsonl"),
    ],
)
def test_wrong_questions_are_refused_in_one_line(completing_run, argv, code, named, capsys):
    assert main(["eval", "--run", str(completing_run.folder.path), *argv]) == code
    assert named in capsys.readouterr().err


def test_labels_that_the_bundle_does_not_know_are_skipped_and_told(classifying_run, tmp_path, capsys):
    data = tmp_path / "data.csv"
    data.write_text("text,label\nthe light,on\nthe lamp,blue\n")
    run = str(classifying_run.folder.path)
    assert main(["eval", "--run", run, "--data", str(data), "--front-end", "fp32", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["fp32"]["samples"] == 1
    assert "label 'blue' is unknown; the bundle knows: off, on, dim" in captured.err


def test_completion_tokens_only_count(completing_run, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "the light is", "completion": "on now"}) + "\n")
    run = str(completing_run.folder.path)
    assert main(["eval", "--run", run, "--data", str(data), "--front-end", "fp32", "--json"]) == 0
    score = json.loads(capsys.readouterr().out)["fp32"]
    spec, tokenizer = completing_run.bundle.manifest.task, open_tokenizer(completing_run.bundle)
    sample = tokenize({"prompt": "the light is", "completion": "on now"}, spec, tokenizer, max_tokens=48)
    assert sample.targets is not None
    assert score["targets"] == int((torch.from_numpy(sample.targets) != NO_TARGET).sum()) == 3
