"""A weak and a strong device, each with its own cut, train one adapter together."""

from __future__ import annotations

import json
import random

import pytest

from sf_contract.messages import Role
from sf_server.store.store import Store
from support.processes import Command, bound_address

pytestmark = pytest.mark.slow

WORDS = {"off": ("stop", "dark", "sleep"), "on": ("go", "open", "wake")}
ROWS = 120


def _rows(seed: int) -> str:
    generator = random.Random(seed)
    lines = []
    for _ in range(ROWS):
        label = generator.choice(["off", "on"])
        text = " ".join(
            [*generator.sample(["the", "light", "is", "now", "please"], k=3), generator.choice(WORDS[label])]
        )
        lines.append(json.dumps({"text": text, "label": label}))
    return "\n".join(lines) + "\n"


def test_devices_of_two_cuts_train_one_adapter_above_both(tmp_path, tiny_model, tiny_bundle):
    model, weak, run = tiny_model("llama"), tmp_path / "weak", tmp_path / "run"
    with Command(
        ["sf-export", "--split-layer", 1, "--model", model, "--task", "text-classification", "--labels", "off,on",
         "--max-tokens", 32, "--quantize", "none", "--out", weak],
        tmp_path / "export.log",
    ) as export:  # fmt: skip
        export.finish()
    folders = weak, tiny_bundle
    with Command(
        ["sf-server", "train", "--bundle", folders[0], "--bundle", folders[1], "--model", model, "--run", run,
         "--epochs", 2, "--bind", "tcp://127.0.0.1:*", "--expect-devices", 2, "--learning-rate", "0.01",
         "--batch-samples", 8, "--lora-first-layer", 3, "--lora-layer-ranks", "3=4", "--lora-rslora", "--threads", 1],
        tmp_path / "server.log",
    ) as server:  # fmt: skip
        server.wait_until((run / "ingest.json").exists, "an address")
        for number, folder in enumerate(folders):
            data = tmp_path / f"data{number}.jsonl"
            data.write_text(_rows(number))
            with Command(
                ["sf-edge", "run", "--no-governor", "--bundle", folder, "--server", bound_address(run), "--data", data,
                 "--device", f"d{number}", "--outbox", tmp_path / f"outbox{number}", "--holdout", "0.1", "--json"],
                tmp_path / f"edge{number}.log",
            ) as edge:  # fmt: skip
                assert json.loads(edge.finish())["samples"] == ROWS
        server.finish()
    said = (tmp_path / "server.log").read_text()
    assert "rsLoRA on down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj of layers 3-3 (rank 4)" in said
    assert "samples of cut 1, 2 are lifted to layer 3 once and kept" in said
    record = json.loads((run / "lora.json").read_text())
    assert (record["ranks"], record["rslora"], record["dora"]) == ({"3": 4}, True, False)
    with Store.open_read_only(run / "store.sqlite") as store:
        infos = [info for role in Role for info in store.sample_infos(role=role)]
        origins = store.origins([info.seq for info in infos])
    assert len({origin.bundle_id for origin in origins.values()}) == 2
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [3]
    unseen = tmp_path / "unseen.jsonl"
    unseen.write_text(_rows(9))
    with Command(["sf-server", "eval", "--run", run, "--data", unseen, "--json"], tmp_path / "eval.log") as evaluation:
        scores = json.loads(evaluation.finish())
    fp32 = scores.pop("fp32")["loss"]
    assert len(scores) == 2  # each bundle's front end
    assert all(score["loss"] == pytest.approx(fp32, abs=0.02) for score in scores.values())
