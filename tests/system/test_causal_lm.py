"""The other task, end to end: prompts stay on the device, completions are learnt."""

from __future__ import annotations

import json
import random

import pytest

from support.processes import Command, bound_address

pytestmark = pytest.mark.slow

ANSWERS = {"red": "stop", "blue": "go", "cold": "close", "warm": "open"}


def _row(generator: random.Random) -> dict[str, str]:
    word = generator.choice(list(ANSWERS))
    filler = generator.sample(["the", "light", "is", "now", "please"], k=3)
    return {"prompt": f"{' '.join(filler)} {word}", "completion": f"{ANSWERS[word]} now"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_completions_are_learnt_from_activations(tmp_path, tiny_model, family):
    generator = random.Random(0)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(_row(generator)) + "\n" for _ in range(300)))
    unseen = tmp_path / "unseen.jsonl"
    unseen.write_text("".join(json.dumps(_row(generator)) + "\n" for _ in range(40)))
    bundle, run = tmp_path / "bundle", tmp_path / "run"
    with Command(
        ["sf-export", "--split-layer", 2, "--model", tiny_model(family), "--task", "causal-lm", "--max-tokens", 32,
         "--out", bundle],
        tmp_path / "export.log",
    ) as export:  # fmt: skip
        export.finish()
    with Command(
        ["sf-server", "train", "--bundle", bundle, "--model", tiny_model(family), "--run", run, "--epochs", 40,
         "--bind", "tcp://127.0.0.1:*", "--expect-devices", 1, "--learning-rate", "0.02", "--batch-samples", 8, "--threads", 1],
        tmp_path / "server.log",
    ) as server:  # fmt: skip
        server.wait_until((run / "ingest.json").exists, "an address")
        with Command(
            ["sf-edge", "run", "--no-governor", "--bundle", bundle, "--server", bound_address(run), "--data", data,
             "--device", "pi", "--outbox", tmp_path / "outbox", "--holdout", "0.1", "--json"],
            tmp_path / "edge.log",
        ) as edge:  # fmt: skip
            assert json.loads(edge.finish())["samples"] == 300
        server.finish()
    with Command(["sf-server", "eval", "--run", run, "--data", unseen, "--json"], tmp_path / "eval.log") as evaluation:
        scores = json.loads(evaluation.finish())
    # Two of three completion tokens never change; answering them alone gives about 0.75;
    # the order in which samples arrive decides what is between 0.9 and 1.
    assert scores["bundle"]["accuracy"] > 0.85
    assert scores["fp32"]["accuracy"] > 0.9
    assert scores["bundle"]["floor"] < 0.5
    with Command(
        ["sf-server", "predict", "--run", run, "--json", "the light is red", "please now the cold"], tmp_path / "p.log"
    ) as prediction:
        answers = [json.loads(line)["completion"] for line in prediction.finish().splitlines()]
    assert answers == ["stop now", "close now"]
