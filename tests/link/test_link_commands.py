"""`sf-edge run` and the keygen commands against a real ingest process: exit codes, and what people are told."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sf_contract.link_keys import LinkSecretKey, make_link_key, new_link_key, read_link_key, read_link_public_keys
from sf_edge.main import main as edge
from sf_server.main import main as server_command

ROWS = '{"text": "turn the lights on", "label": "lights"}\n{"text": "play music", "label": "music"}\n'


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run_edge(server: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`sf-edge run` as device `pi` with the server's key and a key of its own; options replace or add to that."""
    data = tmp_path / "rows.jsonl"
    data.write_text(ROWS)
    key_file = tmp_path / "device.key"
    make_link_key(key_file)

    def run(**changes: Any) -> Outcome:
        options = {
            "bundle": server.bundle.folder, "server": server.address, "data": data, "device": "pi", "key": key_file,
            "outbox": tmp_path / "outbox", "give-up-after-s": 1.5, **changes,
        }  # fmt: skip
        if "server-key" not in options:
            options["server-key"] = server.key.public.hex
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        capfd.readouterr()
        code = edge(["run", *words])
        captured = capfd.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    return run


def device_key(tmp_path: Path) -> LinkSecretKey:
    return read_link_key(tmp_path / "device.key")


def test_an_authorized_device_delivers_its_rows(server, run_edge, tmp_path) -> None:
    server.start()
    server.authorize(device_key(tmp_path), "pi")
    server.wait_for("authorized devices: 1")
    outcome = run_edge()
    assert outcome.code == 0, outcome.err
    assert "2 stored, 0 waiting" in outcome.err


def test_a_key_that_the_server_does_not_know_has_its_own_exit_code_and_cure(server, run_edge, tmp_path) -> None:
    server.start()
    outcome = run_edge()
    assert outcome.code == 26
    assert f"does not know this device's key {device_key(tmp_path).public.key_id}" in outcome.err
    assert "2 samples wait safely" in outcome.err
    assert "Cure: copy this device's .pub file into the server's folder of authorized keys" in outcome.err


def test_a_server_with_another_key_has_its_own_exit_code(server, run_edge) -> None:
    server.start()
    outcome = run_edge(**{"server-key": new_link_key().public.hex})
    assert outcome.code == 27
    assert "its key is not" in outcome.err


def test_a_server_in_the_clear_is_not_believed_to_be_the_one_whose_key_was_given(server, run_edge) -> None:
    server.start(authorized=None)
    outcome = run_edge(**{"server-key": new_link_key().public.hex})
    assert outcome.code == 27
    assert "does not encrypt" in outcome.err


def test_a_name_of_another_device_is_refused_for_good(server, run_edge, tmp_path) -> None:
    server.start()
    server.authorize(device_key(tmp_path), "kitchen")
    server.wait_for("authorized devices: 1")
    outcome = run_edge()
    assert outcome.code == 17
    assert "may only be used by kitchen" in outcome.err
    assert "Cure: give --device the name that this key has on the server" in outcome.err


def test_a_device_waits_for_its_key_to_be_added(server, run_edge, tmp_path) -> None:
    server.start()
    adder = threading.Thread(
        target=lambda: (server.wait_for("an unknown key"), server.authorize(device_key(tmp_path), "pi"))
    )
    adder.start()
    outcome = run_edge(**{"give-up-after-s": 30})
    adder.join()
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": "nowhere.key"}, "cannot be read"),
        ({"server-key": "abc"}, "cannot be read"),
        ({"server": "tcp://192.0.2.1:5555", "server-key": None, "key": None}, "must be encrypted"),
        ({"server-key": None}, "both are needed"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_opened(server, run_edge, tmp_path, changes, says) -> None:
    server.start()
    outcome = run_edge(**changes)
    assert outcome.code == 2
    assert says in outcome.err
    assert not (tmp_path / "outbox").exists()


def test_a_key_that_others_may_read_is_refused_with_the_cure(server, run_edge, tmp_path) -> None:
    server.start()
    (tmp_path / "device.key").chmod(0o644)
    outcome = run_edge()
    assert outcome.code == 2
    assert "mode 0644" in outcome.err
    assert f"Cure: chmod 600 {tmp_path / 'device.key'}" in outcome.err


def test_the_default_key_is_used_and_missed_by_name(server, run_edge, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    server.start()
    outcome = run_edge(key=None)
    assert outcome.code == 2
    assert "make one with sf-edge keygen" in outcome.err
    assert edge(["keygen"]) == 0
    default = tmp_path / ".config" / "splitfrozen" / "device.key"
    server.authorize(read_link_key(default), "pi")
    server.wait_for("authorized devices: 1")
    assert run_edge(key=None).code == 0


@pytest.mark.parametrize("command", [edge, server_command])
def test_keygen_writes_a_pair_prints_what_to_do_with_it_and_never_overwrites(command, tmp_path, capsys) -> None:
    path = tmp_path / "new" / "some.key"
    assert command(["keygen", "--out", str(path)]) == 0
    printed = capsys.readouterr().out
    (public,) = read_link_public_keys(tmp_path / "new" / "some.key.pub")
    assert read_link_key(path).public == public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for shown in (public.key_id, str(path), f"{path}.pub"):
        assert shown in printed
    assert path.read_text().split()[1] not in printed
    assert command(["keygen", "--out", str(path)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert command(["keygen", "--out", str(tmp_path / "other.key"), "--json"]) == 0
    (other,) = read_link_public_keys(tmp_path / "other.key.pub")
    assert json.loads(capsys.readouterr().out)["public_key_hex"] == other.hex
