"""Nothing leaves a device but what it is told to send: no file, no thread, no connection besides ours.

ONNX Runtime's official wheels report usage unless a variable is set before the library is imported. The last tests show
that these checks would see it: the same library without the variable leaves files, and a thread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from sf_bench.ingest_only import running_ingest
from sf_contract.bundle import open_bundle
from sf_server.run_folder import RunFolder
from support.process_traces import Calls, Seen, look_at, trace
from support.processes import BIN, Command, stored_rows
from support.tiny_bundle import write_tiny_bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="there is no /proc to look at processes with"),
]

ZEROMQ_THREADS: Final = ("ZMQbg/IO/0", "ZMQbg/Reaper")
WAKE_SOCKETS: Final = 2
"""The pair through which a signal ends a wait."""
HARMLESS: Final = {"/dev/null", "/dev/tty"}
PLAIN_SESSION: Final = """
import sys, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("telemetry") / "bundle")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def environment(home: Path) -> dict[str, str]:
    """As on a device where nobody has set anything.

    Nothing is inherited but the search path: ONNX Runtime is silent by itself where a variable says that this is a
    build server (`CI`, `GITHUB_ACTIONS` and others), which no device is.
    """
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    if subprocess.run([found, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("strace may not trace here")
    return found


def test_a_running_device_has_our_files_our_connection_and_no_thread_besides(bundle, home, tmp_path, monkeypatch):
    rows = [{"text": f"turn the lights {word}", "label": "lights"} for word in ("on", "off") * 4]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, outbox = RunFolder(tmp_path / "server" / "run"), tmp_path / "outbox"
    with running_ingest(open_bundle(bundle), run) as address:
        bare = environment(home)
        for name in set(os.environ) - set(bare):
            monkeypatch.delenv(name)
        for name, value in bare.items():
            monkeypatch.setenv(name, value)
        log = tmp_path / "edge.log"
        with Command(
            [
                "sf-edge",
                "run",
                "--no-governor",
                "--bundle",
                bundle,
                "--server",
                address,
                "--data",
                data,
                "--outbox",
                outbox,
                "--watch",
            ],
            log,
        ) as edge:
            edge.wait_until(lambda: len(stored_rows(run.path)) == len(rows), "samples in the store")
            seen = look_at(edge.process.pid)
    main_thread, *others = sorted(seen.threads, key=lambda name: name in ZEROMQ_THREADS)
    assert tuple(others) == ZEROMQ_THREADS, seen.threads
    assert main_thread in {"sf-edge", "python", "python3", Path(sys.executable).name}
    assert seen.remote_ports == {int(address.rpartition(":")[2])}
    assert (seen.unnamed_sockets, seen.other_sockets) == (WAKE_SOCKETS, 0)
    assert {path for path in seen.writable if not path.is_relative_to(outbox)} <= {log, Path("/dev/null")}
    assert contents(home) == []


def test_verifying_a_bundle_writes_nothing_connects_to_nobody_and_starts_nothing(bundle, home, tmp_path, strace):
    command = [str(BIN / "sf-edge"), "verify", str(bundle)]
    calls = trace(strace, command, log=tmp_path / "calls", env=environment(home))
    assert calls == Calls(written=calls.written & HARMLESS, sockets=(), started=0)
    assert contents(home) == []


def test_a_whole_run_writes_into_its_outbox_only(bundle, home, tmp_path, strace):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"text": "turn the lights on", "label": "lights"}) + "\n")
    outbox = tmp_path / "outbox"
    with running_ingest(open_bundle(bundle), RunFolder(tmp_path / "server" / "run")) as address:
        command = [
            *(str(BIN / "sf-edge"), "run", "--bundle", str(bundle), "--server", address),
            *("--data", str(data), "--outbox", str(outbox)),
        ]
        calls = trace(strace, command, log=tmp_path / "calls", env=environment(home))
    strange = {path for path in calls.written if not Path(path).is_relative_to(outbox)} - HARMLESS
    assert strange == set()
    assert any(Path(path).is_relative_to(outbox) for path in calls.written)
    assert all("AF_INET" in line or "AF_UNIX" in line or "AF_NETLINK" in line for line in calls.sockets)
    assert calls.started == len(ZEROMQ_THREADS)
    assert contents(home) == []


def test_these_checks_would_see_the_telemetry_in_proc(bundle, home):
    telemetry, silent = (_plain_session(bundle, env) for env in (environment(home), _silenced(environment(home))))
    assert any(path.is_relative_to(home) for path in telemetry.writable)
    assert not any(path.is_relative_to(home) for path in silent.writable)
    assert len(telemetry.threads) > len(silent.threads)
    assert any("Microsoft" in path for path in contents(home))


def test_these_checks_would_see_the_telemetry_in_system_calls(bundle, home, tmp_path, strace):
    command = [sys.executable, "-c", PLAIN_SESSION, str(bundle / "front_end.onnx")]
    loud = trace(strace, command, log=tmp_path / "loud", env=environment(home))
    assert any(Path(path).is_relative_to(home) for path in loud.written)
    quiet = trace(strace, command, log=tmp_path / "quiet", env=_silenced(environment(home)))
    assert quiet.written <= HARMLESS
    assert loud.started > quiet.started


def _silenced(env: dict[str, str]) -> dict[str, str]:
    return {**env, "ORT_DISABLE_TELEMETRY": "1"}


def _plain_session(bundle: Path, env: dict[str, str]) -> Seen:
    command = [sys.executable, "-c", PLAIN_SESSION, bundle / "front_end.onnx"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return look_at(process.pid)
