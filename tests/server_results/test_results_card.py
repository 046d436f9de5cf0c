"""The README.md of an adapter: complete, true, and without anything that is not its reader's business."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from sf_contract.activations import EncodedSample
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.limits import MIB
from sf_contract.messages import Role
from sf_server.main import main
from sf_server.store.store import Store
from sf_server.training.checkpoints import Progress
from sf_server.training.model_card import model_card, with_scores
from sf_server.training.validation import Score
from support.finished_run import finished_run
from support.tiny_models import HIDDEN


@pytest.fixture
def run(classifying_run, tiny_model, tmp_path):
    """A run to which two people's devices sent samples."""
    pieces = finished_run(
        tmp_path / "run", model=tiny_model("llama"), bundles=[bundle.folder for bundle in classifying_run.bundles]
    )
    rows = encode_rows(np.ones((3, HIDDEN), np.float32), WireCodec.INT8)
    with Store.open(pieces.folder.store_path, max_bytes=8 * MIB) as store:
        for number, (name, count) in enumerate((("alice-phone", 3), ("bob-pi", 1))):
            sender = {"device": name, "outbox": f"{number}" * 32, "bundle_id": pieces.bundle.bundle_id}
            store.note_hello(**sender, self_test_error=0.0, waiting_samples=0, now_s=1.0)
            roles = [Role.TRAIN] * count + [Role.VALIDATION]
            store.add(
                **sender,
                samples=[EncodedSample(ordinal=n, role=role, rows=rows, label=1) for n, role in enumerate(roles)],
            )
    steps = [{"kind": "step", "step": n, "loss": loss} for n, loss in enumerate((9.0, *([0.5] * 50)))]
    pieces.folder.metrics_path.write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"kind": "st')
    return pieces


def _score() -> Score:
    score = Score(samples=2)
    score.whole.targets, score.whole.hits = 2, 1
    return score


def test_a_card_tells_what_was_trained_on_what_and_how_well(run):
    card = model_card(run, Progress(step=7, samples=4, tokens=36), _score())
    for told in ("off, on, dim", "cut 1, 3 of 4 layers", "| 1 | 3 | 9 | 1 |", "| 2 | 1 | 3 | 1 |", "| all | 4 | 12 | 2 |",
                 "accuracy 50.0%", "0.5000 nats", "layers 3 to 3", "peft ", "transformers ", "PeftModel.from_pretrained",
                 "Intended use"):  # fmt: skip
        assert told in card, told
    assert all(bundle.bundle_id[:16] in card for bundle in run.bundles)
    assert card.startswith("---\nbase_model: ")


def test_a_card_names_nobodys_device(run):
    card = model_card(run, Progress(), None)
    assert "alice" not in card
    assert "bob" not in card
    assert "none were held out" in card


def test_every_table_of_a_card_has_rows_as_wide_as_its_head(run):
    for line in re.findall(r"(?m)^\|.*\|$", model_card(run, Progress(), None)):
        assert line.count("|") - line.count("\\|") in (3, 5, 6), line


def test_scores_are_put_in_their_place_again_and_again():
    card = with_scores("head\n" + with_scores("", "old").strip() + "\ntail", "new")
    assert card == with_scores(card, "new")
    assert "old" not in card
    assert card.startswith("head")
    assert card.endswith("tail")


def test_eval_writes_its_scores_into_the_card(run, labelled_file, capsys):
    card = run.folder.adapter_path / "README.md"
    card.write_text(model_card(run, Progress(), None))
    argv = ["eval", "--run", str(run.folder.path), "--data", str(labelled_file), "--front-end", "fp32", "--card"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    accuracy = re.search(r"accuracy [0-9.]+%", printed)
    assert accuracy is not None
    assert f"| fp32 | {accuracy[0]}" in card.read_text()
    assert "## Privacy" in card.read_text()
