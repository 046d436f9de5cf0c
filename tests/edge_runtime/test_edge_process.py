"""`sf-edge` as a real process: signals, kill -9, watching, what it imports."""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import subprocess
import sys

import pytest

import sf_edge

FORBIDDEN = (
    "torch", "transformers", "peft", "onnx", "datasets", "pandas", "rich", "pydantic", "huggingface_hub", "optimum",
    "safetensors", "sf_model", "sf_export", "sf_server",
)  # fmt: skip

NOT_FOR_HELP = (
    "numpy", "onnxruntime", "zmq", "tokenizers", "nacl", "msgspec", "sqlite3", "asyncio", "ssl", "hashlib",
    "importlib.metadata",
)  # fmt: skip
"""Each takes milliseconds to a second to load; `sf-edge --version` shall answer at once on a slow board too."""


def python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_cleanly_and_the_same_command_resumes(edge, make_server, number, code) -> None:
    server = make_server()
    data = edge.write(40)
    process = edge.start(server, data)
    wait_until_computed(edge, 40)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "40 samples wait safely" in err
    assert "resumes" in err
    assert "Traceback" not in err
    server.start()
    assert edge.run(server, data, json=True).summary["forward_passes"] == 40
    assert server.ordinals() == list(range(40))


def test_watching_takes_complete_lines_as_they_come_and_never_finishes(edge, server) -> None:
    data = edge.write(3)
    process = edge.start(server, data, watch=True)
    server.wait_for(lambda: len(server.stored) == 3)
    with data.open("a") as stream:
        stream.write('{"text": "play", "label": "music"}\n{"text": "turn", "lab')
    server.wait_for(lambda: len(server.stored) == 4)
    with data.open("a") as stream:
        stream.write('el": "lights"}\n')
    server.wait_for(lambda: len(server.stored) == 5)
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "skipped" not in err
    assert server.finished == []


@pytest.mark.slow
def test_kill_9_in_the_middle_leaves_every_row_stored_exactly_once(edge, make_server, seeded) -> None:
    rows = 600
    server = make_server(credit_bytes=1500)
    server.start()
    data = edge.write(rows)
    for target in sorted(seeded.integers(10, rows, size=3)):
        server.faults.silent_from = target
        process = edge.start(server, data)
        server.wait_for(lambda target=target: len(server.stored) >= target)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    server.faults.silent_from = None
    process = edge.start(server, data, json=True)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert server.ordinals() == list(range(rows))
    for name in ("rows", "samples", "forward_passes", "uploaded_samples", "acknowledged"):
        assert summary[name] == rows, name
    assert server.repeats <= summary["resent_samples"]
    expected_tokens = [min(16, 4 + i % 9) for i in range(rows)]
    assert [sample.rows.tokens for _, sample in sorted(server.stored.items())] == expected_tokens


@pytest.mark.slow
def test_a_server_that_restarts_gets_what_it_did_not_acknowledge_again(edge, make_server) -> None:
    server = make_server(credit_bytes=3000, drop_acks=1)
    server.start()
    process = edge.start(server, edge.write(50), json=True)
    server.wait_for(lambda: server.faults.drop_acks == 0)
    server.stop()
    server.start()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert server.ordinals() == list(range(50))
    summary = json.loads(out)
    assert summary["uploaded_samples"] == 50
    assert 0 < server.repeats <= summary["resent_samples"]


@pytest.mark.slow
def test_a_long_wait_is_told(edge, make_server) -> None:
    server = make_server()
    process = edge.start(server, edge.write(2), give_up_after_s=12)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 16
    assert f"waiting for the server at {server.address} to answer since 10 s" in err


def test_no_training_library_is_imported() -> None:
    names = [module.name for module in pkgutil.walk_packages(sf_edge.__path__, "sf_edge.")]
    assert {"sf_edge.run", "sf_edge.sources.files"} <= set(names)
    found = python(f"import sys, {', '.join(names)}; print([name for name in {FORBIDDEN} if name in sys.modules])")
    assert found.strip() == "[]"


def test_version_and_help_load_nothing_heavy() -> None:
    code = "import sys; from sf_edge.main import main\ntry:\n main([{!r}])\nexcept SystemExit: pass\n"
    for option in ("--version", "--help"):
        out = python(code.format(option) + f"print([m for m in {NOT_FOR_HELP} if m in sys.modules])")
        assert out.splitlines()[-1] == "[]"
        assert "sf-edge" in out


def test_a_run_loads_no_event_loop_and_no_tls() -> None:
    """They would stay in memory for weeks; a helper of the messaging library brings them by accident."""
    found = python("import sys, sf_edge.run; print([name for name in ('asyncio', 'ssl') if name in sys.modules])")
    assert found.strip() == "[]"


def test_using_a_front_end_leaves_no_telemetry_behind(bundle, tmp_path) -> None:
    code = (
        "import os, threading\nfrom sf_edge.main import main\n"
        f"assert main(['verify', {str(bundle.folder)!r}]) == 0\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], threading.active_count())"
    )
    found = python(code, HOME=str(tmp_path), ORT_DISABLE_TELEMETRY="0", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert found.splitlines()[-1] == "1 1"
    assert sorted(tmp_path.rglob("*")) == []


def wait_until_computed(edge, samples: int) -> None:
    """Look at the outbox until a process has filled it."""
    edge.wait_until_computed(samples)
