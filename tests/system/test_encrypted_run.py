"""The three commands that set up an encrypted link, as the documents give them, up to a trained adapter."""

from __future__ import annotations

import json
import random
import shlex

import pytest

from support.processes import Command, stored_rows
from support.tiny_models import WORDS

pytestmark = pytest.mark.slow

ROWS = 24


def test_an_encrypted_run_from_keys_to_an_adapter(tmp_path, tiny_bundle, tiny_model) -> None:
    words = random.Random(7)
    rows = [{"text": " ".join(words.choices(WORDS, k=6)), "label": "on" if n % 2 else "off"} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, log = tmp_path / "run", tmp_path / "server.log"
    key = tmp_path / "device.key"
    with Command(["sf-edge", "keygen", "--out", key], tmp_path / "keygen.log") as keygen:
        keygen.finish()
    with Command(
        [
            "sf-server", "train", "--run", run, "--bundle", tiny_bundle, "--model", tiny_model("llama"),
            "--bind", "tcp://127.0.0.1:*", "--authorized", run / "authorized", "--expect-devices", 1, "--epochs", 1,
            "--threads", 1,
        ],
        log,
    ) as server:  # fmt: skip
        server.wait_until(lambda: "devices come in encrypted with" in log.read_text(), "the key of the server")
        line = next(line for line in log.read_text().splitlines() if "devices come in encrypted with" in line)
        printed = shlex.split(line.partition("sf-edge run ")[2])
        with Command(
            [
                "sf-edge", "run", "--no-governor", *printed, "--bundle", tiny_bundle, "--data", tmp_path / "rows.jsonl",
                "--device", "pi-3", "--key", key, "--outbox", tmp_path / "outbox",
            ],
            tmp_path / "device.log",
        ) as device:  # fmt: skip
            device.wait_until(lambda: "an unknown key" in log.read_text(), "the refusal of a key nobody knows")
            (tmp_path / "pi-3.pub").write_bytes(key.with_name("device.key.pub").read_bytes())
            (tmp_path / "pi-3.pub").rename(run / "authorized" / "pi-3.pub")
            device.finish()
        server.finish()
    assert [(device, ordinal) for device, _, ordinal, _, _ in stored_rows(run)] == [("pi-3", n) for n in range(ROWS)]
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
