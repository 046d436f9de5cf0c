"""A store without room: devices wait, the trainer goes on with what is there, and with more room everything is trained."""

from __future__ import annotations

import json
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.processes import Command, bound_address, last_step, stored_rows
from support.tiny_models import WORDS

pytestmark = pytest.mark.slow

ROWS = 1_500
ROOM_BYTES = 1 << 20


def _write_rows(path: Path) -> None:
    generator = random.Random(1)
    rows = [
        {"text": " ".join(generator.choices(WORDS, k=16)), "label": generator.choice(["on", "off"])}
        for _ in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_with_a_full_store_training_goes_on_and_devices_wait_for_room(tmp_path, tiny_bundle, tiny_model):
    data, run, log = tmp_path / "data.jsonl", tmp_path / "run", tmp_path / "server.log"
    _write_rows(data)

    def server(*options: object) -> Command:
        return Command(["sf-server", "train", "--run", run, "--threads", 1, "--json", *options], log)

    with ExitStack() as stack:
        first = stack.enter_context(
            server(
                "--bundle", tiny_bundle, "--model", tiny_model("llama"), "--bind", "tcp://127.0.0.1:*", "--expect-devices", 1,
                "--epochs", 1, "--window-samples", 128, "--step-deadline", 1, "--max-store-bytes", ROOM_BYTES,
            )
        )  # fmt: skip
        first.wait_until((run / "ingest.json").exists, "an address")
        edge = stack.enter_context(
            Command(
                ["sf-edge", "run", "--no-governor", "--bundle", tiny_bundle, "--server", bound_address(run),
                 "--data", data, "--outbox", tmp_path / "outbox", "--json"],
                tmp_path / "edge.log",
            )
        )  # fmt: skip
        first.wait_until(lambda: "Devices keep their samples" in log.read_text(), "a full store")
        stored = len(stored_rows(run))
        assert 0 < stored < ROWS
        first.wait_until(lambda: last_trained(run) == stored, "training on all that is stored")
        first.process.terminate()
        assert first.fail()[0] == 143
        second = stack.enter_context(server("--resume", "--max-store-bytes", 64 << 20))
        result = json.loads(second.finish())
        report = json.loads(edge.finish())
    assert "Traceback" not in log.read_text()
    assert "--max-store-bytes 1048576 -> 67108864" in log.read_text()
    assert (result["samples"], result["samples_trained"]) == (ROWS, ROWS)
    assert (report["samples"], report["waiting"]) == (ROWS, 0)
    assert last_step(run) == result["steps"]


def last_trained(run: Path) -> int:
    """Samples trained on so far."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    steps = [json.loads(line) for line in lines if line.endswith("}")]
    return max((int(step.get("samples_trained", 0)) for step in steps), default=0)
