"""kill -9 of everything that can be killed, in the middle; afterwards every sample is stored and trained exactly right."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.processes import Command, bound_address, last_step, stored_rows
from support.tiny_models import WORDS

pytestmark = pytest.mark.slow

DEVICES = ("a", "b", "c")
ROWS_EACH = 150
EPOCHS = 4


def _write_data(folder: Path, seed: int) -> dict[str, list[str]]:
    """Private files; returns the labels of each device in order."""
    generator = random.Random(seed)
    labels: dict[str, list[str]] = {}
    for device in DEVICES:
        rows = []
        for _ in range(ROWS_EACH):
            words = generator.choices(WORDS, k=generator.randint(3, 12))
            rows.append({"text": " ".join(words), "label": "on" if "the" in words or words[0] < "m" else "off"})
        (folder / f"{device}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        labels[device] = [row["label"] for row in rows]
    return labels


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_kills_in_the_middle_every_sample_is_stored_once_and_trained_exactly_epochs_times(
    tmp_path, tiny_bundle, tiny_model, seed
):
    labels = _write_data(tmp_path, seed)
    moments = random.Random(seed)
    run = tmp_path / "run"
    total = len(DEVICES) * ROWS_EACH
    steps = EPOCHS * total // 8

    def server(*options: str) -> Command:
        return Command(
            [
                "sf-server", "train", "--run", run, "--bundle", tiny_bundle, "--model", tiny_model("llama"),
                "--bind", "tcp://127.0.0.1:*", "--expect-devices", len(DEVICES), "--epochs", EPOCHS,
                "--batch-samples", 8, "--window-samples", 64, "--checkpoint-every-s", "0.3", "--threads", 1, *options,
            ],
            tmp_path / "server.log",
        )  # fmt: skip

    def edge(device: str) -> Command:
        return Command(
            [
                "sf-edge", "run", "--no-governor", "--bundle", tiny_bundle, "--server", bound_address(run), "--device", device,
                "--data", tmp_path / f"{device}.jsonl", "--outbox", tmp_path / f"outbox-{device}", "--json",
            ],
            tmp_path / f"{device}.log",
        )  # fmt: skip

    with ExitStack() as stack:
        supervisor = stack.enter_context(server())
        supervisor.wait_until((run / "ingest.json").exists, "an address")
        edges = {device: stack.enter_context(edge(device)) for device in DEVICES}

        victim = moments.choice(DEVICES)
        stored = moments.randint(5, total // 4)
        supervisor.wait_until(lambda: len(stored_rows(run)) >= stored, f"{stored} stored samples")
        edges[victim].kill()
        edges[victim] = stack.enter_context(edge(victim))

        stored = moments.randint(stored, total // 2)
        supervisor.wait_until(lambda: len(stored_rows(run)) >= stored, f"{stored} stored samples")
        ingest = supervisor.child("sf_server.ingest.process")
        ingest.kill()

        step = moments.randint(3, steps // 3)
        supervisor.wait_until(lambda: last_step(run) >= step, f"step {step}")
        supervisor.child("sf_server.training.process").kill()

        step = moments.randint(step + 1, 2 * steps // 3)
        supervisor.wait_until(lambda: last_step(run) >= step, f"step {step}")
        supervisor.kill()
        supervisor = stack.enter_context(server("--resume"))

        supervisor.finish()
        reports = {device: json.loads(edges[device].finish()) for device in DEVICES}

    rows = stored_rows(run)
    index = {"off": 0, "on": 1}
    for device in DEVICES:
        mine = [(ordinal, label) for name, _, ordinal, label, _ in rows if name == device]
        assert mine == [(ordinal, index[label]) for ordinal, label in enumerate(labels[device])]
        assert reports[device]["samples"] == ROWS_EACH
        assert reports[device]["waiting"] == 0
    # That each of them is trained exactly once per epoch is marked by the trainer, which ends with an error where it is not.
    newest = max((run / "checkpoints").glob("step-*"))
    progress = json.loads((newest / "state.json").read_text())
    assert (progress["samples"], progress["samples_trained"]) == (total, EPOCHS * total)
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
