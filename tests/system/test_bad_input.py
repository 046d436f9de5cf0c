"""A user's mistake is one line with cause and cure and its own exit code; never a traceback."""

from __future__ import annotations

import json
import shutil
import socket

import pytest

from support.processes import Command, bound_address

pytestmark = pytest.mark.slow


def _failure(tmp_path, *arguments: object) -> tuple[int, str]:
    with Command(list(arguments), tmp_path / "log") as command:
        code, said = command.fail()
    assert "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    assert "Cure:" in last, said
    return code, last


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"light {word}", "label": word}) + "\n" for word in ("on", "off")))
    return path


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--model", "no/such-model"], 10, "no/such-model"),
        (["--split-layer", "0"], 11, "choose --split-layer from 1 to 3"),
        (["--split-layer", "-2"], 11, "out of range"),
        (["--split-layer", "4"], 11, "has 4 layers"),
        (["--split-layer", "two"], 2, "two"),
        (["--labels", "on"], 2, "label"),
        (["--no-such-setting", "1"], 2, "--no-such-setting"),
    ],
)
def test_the_exporter(tmp_path, tiny_model, options, code, words):
    given = {"--model": tiny_model("llama"), "--split-layer": "2", "--labels": "off,on", "--out": tmp_path / "b"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    found, line = _failure(tmp_path, "sf-export", *(part for pair in given.items() for part in pair))
    assert (found, words in line) == (code, True), line
    assert not (tmp_path / "b").exists()


def test_a_file_that_only_claims_to_be_gguf(tmp_path):
    (tmp_path / "fake.gguf").write_bytes(b"GGML" + bytes(100))
    code, line = _failure(
        tmp_path, "sf-export", "--model", tmp_path / "fake.gguf", "--split-layer", "2", "--labels", "a,b"
    )
    assert code == 10
    assert "not a GGUF file" in line


def _edge(tmp_path, bundle, data, *options: object) -> list[object]:
    return [
        "sf-edge",
        "run",
        "--no-governor",
        "--bundle",
        bundle,
        "--data",
        data,
        "--outbox",
        tmp_path / "outbox",
        *options,
    ]


def test_a_server_that_is_not_there_keeps_the_samples_and_says_so(tmp_path, tiny_bundle, data):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = f"tcp://127.0.0.1:{port}"
    code, line = _failure(tmp_path, *_edge(tmp_path, tiny_bundle, data, "--server", server, "--give-up-after-s", "1"))
    assert code == 16
    assert server in line
    assert "2 samples" in line


def test_a_tampered_bundle(tmp_path, tiny_bundle, data):
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    graph = copy / "front_end.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    for command in (
        _edge(tmp_path, copy, data, "--server", "tcp://127.0.0.1:9"),
        ["sf-server", "train", "--bundle", copy, "--run", tmp_path / "run", "--expect-devices", 1],
        ["sf-export", "verify", copy],
        ["sf-bench", "front-end", copy],
    ):
        code, line = _failure(tmp_path, *command)
        assert code == 13, line
        assert "front_end.onnx" in line


def test_another_base_model_than_the_bundles(tmp_path, tiny_bundle, tiny_model):
    code, line = _failure(
        tmp_path, "sf-server", "train", "--bundle", tiny_bundle, "--model", tiny_model("qwen2"), "--run", tmp_path / "run",
        "--bind", "tcp://127.0.0.1:*", "--expect-devices", 1,
    )  # fmt: skip
    assert code == 14
    assert "was made from" in line


def test_a_port_in_use(tmp_path, tiny_bundle, tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        code, line = _failure(
            tmp_path, "sf-server", "train", "--bundle", tiny_bundle, "--model", tiny_model("llama"),
            "--run", tmp_path / "run", "--bind", address, "--expect-devices", 1,
        )  # fmt: skip
    assert code == 18
    assert address in line


def test_a_device_with_the_bundle_of_another_run_is_refused(tmp_path, tiny_bundle, tiny_model, data):
    other = tmp_path / "other"
    with Command(
        ["sf-export", "--split-layer", "1", "--model", tiny_model("llama"), "--labels", "off,on", "--out", other,
         "--max-tokens", "32"],
        tmp_path / "export.log",
    ) as export:  # fmt: skip
        export.finish()
    run = tmp_path / "run"
    with Command(
        ["sf-server", "train", "--bundle", tiny_bundle, "--model", tiny_model("llama"), "--run", run,
         "--bind", "tcp://127.0.0.1:*", "--expect-devices", 1],
        tmp_path / "server.log",
    ) as server:  # fmt: skip
        server.wait_until((run / "ingest.json").exists, "an address")
        code, line = _failure(tmp_path, *_edge(tmp_path, other, data, "--server", bound_address(run)))
    assert code == 17
    assert "bundle" in line


def test_unknown_settings_in_a_file_are_all_named(tmp_path, tiny_bundle, data):
    (tmp_path / "edge.toml").write_text('sever = "tcp://127.0.0.1:1"\nthreads = "many"\n')
    code, line = _failure(tmp_path, *_edge(tmp_path, tiny_bundle, data, "--config", tmp_path / "edge.toml"))
    assert code == 2
    assert "sever" in line
    assert "did you mean server" in line
    assert "threads" in line
