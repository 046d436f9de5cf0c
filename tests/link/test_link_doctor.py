"""`sf-edge doctor` against real servers, and what only looks like one: what is wrong is named, with its exit code and cure."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from sf_contract.link_keys import LinkSecretKey, make_link_key, new_link_key, read_link_key
from sf_contract.settings import resolve_settings
from sf_contract.signing import new_signing_key
from sf_edge.doctor.examine import examine
from sf_edge.doctor.findings import Check, Finding, State
from sf_edge.doctor.instruments import Instruments, system_instruments
from sf_edge.governor.decisions import Reading
from sf_edge.main import main as edge
from sf_edge.settings import DoctorSettings
from sf_server.store.store import Store
from support.processes import BIN
from support.tiny_bundle import GRAPH, embedding_table, replace_files, write_tiny_bundle

ROWS = '{"text": "turn the lights on", "label": "lights"}\n{"text": "play music", "label": "music"}\n'
NETWORK = (Check.NAME, Check.TCP, Check.HANDSHAKE, Check.VERDICT)


@dataclass(frozen=True)
class Report:
    """What `sf-edge doctor --json` said."""

    code: int
    checks: dict[str, dict[str, Any]]

    def state(self, check: Check) -> str:
        return str(self.checks[check]["state"])

    def detail(self, check: Check) -> str:
        return str(self.checks[check]["detail"])

    def cure(self, check: Check) -> str:
        return str(self.checks[check]["cure"])

    @property
    def failed(self) -> list[str]:
        return [check for check, found in self.checks.items() if found["state"] == State.FAILED]


def options_of(server: Any, folder: Path, /, **changes: object) -> dict[str, object]:
    """As device `pi`, with the server's key and a key of its own; None leaves an option out."""
    options: dict[str, object] = {
        "bundle": server.bundle.folder, "server": server.address, "data": folder / "rows.jsonl", "device": "pi",
        "key": folder / "device.key", "outbox": folder / "outbox", "no-governor": True, "timeout-s": 5, **changes,
    }  # fmt: skip
    if "server-key" not in options:
        options["server-key"] = server.key.public.hex
    return {name: value for name, value in options.items() if value is not None}


def words_of(options: dict[str, object]) -> list[str]:
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]


@pytest.fixture
def key(tmp_path: Path) -> LinkSecretKey:
    """This device's, in its file; and its data."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    make_link_key(tmp_path / "device.key")
    return read_link_key(tmp_path / "device.key")


@pytest.fixture
def doctor(server: Any, key: LinkSecretKey, tmp_path: Path, capfd: Any) -> Callable[..., Report]:
    def run(**changes: object) -> Report:
        capfd.readouterr()
        code = edge(["doctor", "--json", *words_of(options_of(server, tmp_path, **changes))])
        document = json.loads(capfd.readouterr().out)
        assert document["exit_code"] == code
        assert [found["check"] for found in document["checks"]] == [check.value for check in Check], "every check, once"
        return Report(code, {found.pop("check"): found for found in document["checks"]})

    return run


def welcome(server: Any, key: LinkSecretKey, name: str = "pi") -> None:
    server.start()
    server.authorize(key, name)
    server.wait_for("authorized devices: 1")


@contextmanager
def listener(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of something that accepts connections and is no server of ours."""
    guests: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            while True:
                try:
                    guest, _ = door.accept()
                except OSError:
                    return
                guests.append(guest)
                with contextlib.suppress(OSError):  # a guest may leave in the middle of it
                    talk(guest)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{door.getsockname()[1]}"
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()
    for guest in guests:
        guest.close()


def tree(folder: Path) -> dict[str, bytes]:
    """All files but SQLite's, by which its readers tell each other where they are."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_all_is_well_and_neither_side_keeps_anything_of_the_visit(server, doctor, key, tmp_path) -> None:
    welcome(server, key)
    before = tree(tmp_path / "bundle")
    report = doctor()
    assert (report.code, report.failed) == (0, [])
    assert {check for check, found in report.checks.items() if found["state"] != State.OK} == {Check.GOVERNOR}
    assert server.key.public.key_id in report.detail(Check.HANDSHAKE)
    assert key.public.key_id in report.detail(Check.KEY)
    assert "would let pi in" in report.detail(Check.VERDICT)
    assert "as the server's" in report.detail(Check.CLOCK)
    assert not (tmp_path / "outbox").exists()
    assert tree(tmp_path / "bundle") == before
    with Store.open_read_only(server.folder.store_path) as store:
        assert store.device_summaries() == []
    assert server.said("refused") == 0, "nothing alarms the person at the server"


@pytest.mark.parametrize("port", [None, 9])
def test_no_server_or_the_wrong_port_is_a_refused_connection(server, doctor, key, port) -> None:
    welcome(server, key)
    if port is None:
        address = server.address
        server.stop()
    else:
        address = f"tcp://127.0.0.1:{port}"
    report = doctor(server=address)
    assert (report.code, report.failed) == (16, [Check.TCP])
    assert "Connection refused" in report.detail(Check.TCP)
    assert "nobody listens there" in report.cure(Check.TCP)
    for check in (Check.HANDSHAKE, Check.VERDICT):
        assert (report.state(check), report.detail(check)) == (State.SKIPPED, "because tcp failed")


def test_a_wrong_server_key_is_told_apart_from_a_server_that_does_not_encrypt(server, doctor, key) -> None:
    welcome(server, key)
    other = new_link_key().public
    report = doctor(**{"server-key": other.hex})
    assert (report.code, report.failed) == (27, [Check.HANDSHAKE])
    assert f"has another key than {other.key_id}" in report.detail(Check.HANDSHAKE)
    assert "give --server-key the key that sf-server train printed" in report.cure(Check.HANDSHAKE)
    assert report.state(Check.TCP) == State.OK
    assert report.detail(Check.VERDICT) == "because handshake failed"


def test_an_encrypting_device_and_a_server_in_the_clear(server, doctor) -> None:
    server.start(authorized=None)
    report = doctor(**{"server-key": new_link_key().public.hex})
    assert (report.code, report.failed) == (27, [Check.HANDSHAKE])
    assert "does not encrypt" in report.detail(Check.HANDSHAKE)
    assert "start the server with --key" in report.cure(Check.HANDSHAKE)


def test_a_device_in_the_clear_and_an_encrypting_server(server, doctor, key) -> None:
    welcome(server, key)
    report = doctor(**{"server-key": None, "key": None})
    assert (report.code, report.failed) == (27, [Check.HANDSHAKE])
    assert "encrypts, and this device does not" in report.detail(Check.HANDSHAKE)
    assert "give --server-key" in report.cure(Check.HANDSHAKE)


def test_a_server_in_the_clear_lets_a_device_in_the_clear_in(server, doctor, tmp_path) -> None:
    server.start(authorized=None, bind=f"ipc://{tmp_path}/socket")
    report = doctor(**{"server-key": None, "key": None})
    assert (report.code, report.state(Check.VERDICT)) == (0, State.OK)
    assert [report.detail(check) for check in (Check.NAME, Check.TCP)] == ["ipc:// has none", "ipc:// goes without"]
    server.stop()
    gone = doctor(**{"server-key": None, "key": None})
    assert (gone.code, gone.failed) == (16, [Check.HANDSHAKE])


def test_an_unauthorized_device_is_told_which_key_and_where_to_put_it(server, doctor, key) -> None:
    server.start()
    report = doctor()
    assert (report.code, report.failed) == (26, [Check.HANDSHAKE])
    assert f"does not know this device's key {key.public.key_id}" in report.detail(Check.HANDSHAKE)
    assert "copy this device's .pub file" in report.cure(Check.HANDSHAKE)


def test_a_key_that_is_authorized_under_another_name_is_the_servers_verdict(server, doctor, key) -> None:
    welcome(server, key, "kitchen")
    report = doctor()
    assert (report.code, report.failed) == (17, [Check.VERDICT])
    assert "may only be used by kitchen" in report.detail(Check.VERDICT)
    assert "give --device the name that this key has on the server" in report.cure(Check.VERDICT)


def test_a_server_that_trains_for_another_bundle(server, doctor, key, tmp_path) -> None:
    welcome(server, key)
    other = write_tiny_bundle(tmp_path / "other", name="other")
    report = doctor(bundle=other)
    assert (report.code, report.failed) == (17, [Check.VERDICT])
    assert server.bundle.bundle_id[:12] in report.detail(Check.VERDICT)
    assert "give --bundle the bundle that the server was started with" in report.cure(Check.VERDICT)


def test_a_tampered_bundle_does_not_hide_what_the_server_says(server, doctor, key, tmp_path) -> None:
    welcome(server, key)
    tampered = write_tiny_bundle(tmp_path / "tampered")
    content = bytearray((tampered / GRAPH).read_bytes())
    content[len(content) // 2] ^= 1
    (tampered / GRAPH).write_bytes(content)
    report = doctor(bundle=tampered)
    assert (report.code, report.failed) == (13, [Check.BUNDLE])
    assert f"{GRAPH} was changed" in report.detail(Check.BUNDLE)
    assert report.cure(Check.BUNDLE)
    for check in (Check.SIGNATURE, Check.SELF_TEST):
        assert report.detail(check) == "because bundle failed"
    assert "it was not asked about the bundle" in report.detail(Check.VERDICT)


def test_a_machine_that_computes_something_else_fails_the_self_test(server, doctor, key, tmp_path) -> None:
    welcome(server, key)
    other = write_tiny_bundle(tmp_path / "other")
    replace_files(other, vectors=bytes(4 * 7 * embedding_table().shape[1]))
    report = doctor(bundle=other, server=None, **{"server-key": None})
    assert (report.code, report.failed) == (24, [Check.SELF_TEST])


def test_a_bundle_that_nobody_trusted_signed(server, doctor, key, tmp_path) -> None:
    server.start()
    (tmp_path / "maker.pub").write_text(new_signing_key().public.line())
    report = doctor(trust=tmp_path / "maker.pub", server=None, **{"server-key": None})
    assert (report.code, report.failed) == (25, [Check.SIGNATURE])
    assert report.state(Check.SELF_TEST) == State.OK


def test_a_key_file_that_others_may_read(server, doctor, key, tmp_path) -> None:
    welcome(server, key)
    (tmp_path / "device.key").chmod(0o644)
    report = doctor()
    assert (report.code, report.failed) == (2, [Check.KEY])
    assert "mode 0644" in report.detail(Check.KEY)
    assert report.cure(Check.KEY) == f"chmod 600 {tmp_path / 'device.key'}"
    assert report.state(Check.TCP) == State.OK
    assert report.detail(Check.HANDSHAKE) == "because key failed"


def test_a_listener_that_says_nothing(doctor, key, server) -> None:
    welcome(server, key)
    with listener(lambda guest: None) as address:
        report = doctor(server=address, **{"timeout-s": 1})
    assert (report.code, report.failed) == (16, [Check.HANDSHAKE])
    assert "said nothing for 1 s" in report.detail(Check.HANDSHAKE)
    assert report.state(Check.TCP) == State.OK


def test_a_listener_of_another_kind(doctor, key, server) -> None:
    welcome(server, key)

    def answer(guest: socket.socket) -> None:
        guest.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" + bytes(64))
        guest.shutdown(socket.SHUT_WR)

    with listener(answer) as address:
        report = doctor(server=address)
    assert (report.code, report.failed) == (27, [Check.HANDSHAKE])
    assert "no SplitFrozen server" in report.detail(Check.HANDSHAKE)


def test_a_server_that_was_reached_and_does_not_answer(doctor, server, key) -> None:
    server.start()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        report = doctor(server=f"tcp://127.0.0.1:{port}", key=None, **{"server-key": None, "timeout-s": 1})
    assert (report.code, report.failed) == (16, [Check.VERDICT])
    assert "did not answer within 1 s" in report.detail(Check.VERDICT)


def test_a_host_name_without_an_address(doctor, server) -> None:
    server.start()
    report = doctor(server="tcp://no-such-host.invalid:5555")
    assert (report.code, report.failed) == (16, [Check.NAME])
    assert "no-such-host.invalid" in report.detail(Check.NAME)
    for check in (Check.TCP, Check.HANDSHAKE, Check.VERDICT):
        assert report.detail(check) == "because host name failed"


def test_a_host_name_that_has_one(doctor, server, key) -> None:
    welcome(server, key)
    report = doctor(server=server.address.replace("127.0.0.1", "localhost"))
    assert report.state(Check.NAME) == State.OK
    assert "127.0.0.1" in report.detail(Check.NAME)


def test_a_link_that_must_be_encrypted_and_has_no_key(doctor, server) -> None:
    server.start()
    report = doctor(server="tcp://192.0.2.1:5555", key=None, **{"server-key": None, "timeout-s": 0.2})
    assert report.failed[0] == Check.SERVER_KEY
    assert report.code == 2
    assert "must be encrypted" in report.detail(Check.SERVER_KEY)
    assert report.state(Check.HANDSHAKE) == State.SKIPPED


def test_a_working_session_goes_on_while_the_doctor_asks(server, doctor, key, tmp_path) -> None:
    welcome(server, key)
    options = options_of(server, tmp_path, watch=True, nice=0)
    del options["timeout-s"]
    with (tmp_path / "run.log").open("w") as log:
        process = subprocess.Popen([BIN / "sf-edge", "run", *words_of(options)], stderr=log)
    try:
        _wait_until(lambda: _stored(server) == 2)
        report = doctor()
        assert (report.code, report.failed) == (0, [])
        assert report.state(Check.OUTBOX) == State.WARNING
        assert f"a running sf-edge (process {process.pid}: running) uses it" in report.detail(Check.OUTBOX)
        assert report.state(Check.VERDICT) == State.OK
        with (tmp_path / "rows.jsonl").open("a") as stream:
            stream.write(ROWS)
        _wait_until(lambda: _stored(server) == 4)
        with Store.open_read_only(server.folder.store_path) as store:
            assert len(store.device_summaries()) == 1
    finally:
        process.kill()
        process.wait()
    before = tree(tmp_path / "outbox")
    report = doctor()
    assert report.state(Check.OUTBOX) == State.OK
    assert "0 samples wait" in report.detail(Check.OUTBOX)
    assert tree(tmp_path / "outbox") == before
    named = doctor(device="other")
    assert Check.OUTBOX in named.failed
    assert named.code == 14


@pytest.mark.parametrize(
    "wall_s", [12_345.0, time.time() - 90_000, time.time() + 9_000], ids=["never-set", "a-day-behind", "hours-ahead"]
)
def test_a_wrong_clock_is_a_warning_that_says_what_it_harms(server, key, tmp_path, wall_s) -> None:
    welcome(server, key)
    found = examined(server, tmp_path, wall_s=lambda: wall_s)
    assert found[Check.CLOCK].state is State.WARNING
    side = "ahead of" if wall_s > time.time() else "behind"
    assert f"{side} the server's" in found[Check.CLOCK].detail
    assert ("before the bundle's files came here" in found[Check.CLOCK].detail) == (side == "behind")
    assert "times in logs" in found[Check.CLOCK].detail
    assert "timedatectl" in found[Check.CLOCK].cure
    assert found[Check.VERDICT].state is State.OK, "the handshake needs no clock"


def test_a_governor_that_would_pause_is_a_warning(server, key, tmp_path) -> None:
    welcome(server, key)
    cold = Reading(battery_percent=12, on_battery=True, temperature_c=40)
    found = examined(server, tmp_path, {"no-governor": False}, probe=_Fixed(cold))
    assert found[Check.GOVERNOR].state is State.WARNING
    assert "would pause now: battery at 12 %, waits for 25 % or the charger" in found[Check.GOVERNOR].detail
    assert found[Check.VERDICT].state is State.OK


def test_name_servers_that_never_answer_are_not_waited_for(server, key, tmp_path) -> None:
    server.start()

    def hang(host: object) -> list[str]:
        raise TimeoutError

    settings = settings_of(server, tmp_path, server="tcp://lab:5555")
    instruments = system_instruments(settings)
    network = replace(instruments.network, resolve=hang)
    found = examine(settings, replace(instruments, network=network), lambda finding: None).findings
    assert found[Check.NAME].state is State.FAILED
    assert "name servers" in found[Check.NAME].cure


@pytest.mark.slow
def test_a_full_disk_is_named(server, key, tmp_path) -> None:
    welcome(server, key)
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=64k none "$1" && head -c 65536 /dev/zero > "$1/filler"; shift; exec "$@"'
    options = options_of(server, tmp_path, outbox=disk / "outbox")
    command = [sys.executable, BIN / "sf-edge", "doctor", *words_of(options)]
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", disk, *command], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this machine does not let a user mount a file system of his own (unshare -Urm)")
    assert done.returncode == 19, done.stdout + done.stderr
    assert "failed   disk        only 0 B" in done.stdout
    assert "cure: free some space, 8.0 MiB at least" in done.stdout
    assert "1 failed" in done.stdout


def test_a_person_reads_aligned_lines_with_the_cure_below(server, key, tmp_path, capsys) -> None:
    server.start()
    assert edge(["doctor", *words_of(options_of(server, tmp_path))]) == 26
    lines = capsys.readouterr().out.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("failed   handshake ")]
    assert lines[at + 1].startswith(f"{' ' * 21}cure: copy this device's .pub file")
    assert lines[-1] == "16 checks: 1 failed, 2 skipped; exit code 26"


@dataclass(frozen=True)
class _Fixed:
    reading: Reading

    def read(self) -> Reading:
        return self.reading


def settings_of(server: Any, folder: Path, /, **changes: object) -> DoctorSettings:
    flags = {name.replace("-", "_"): value for name, value in options_of(server, folder, **changes).items()}
    return resolve_settings(
        DoctorSettings,
        toml_path=None,
        flags={name: str(value) if isinstance(value, Path) else value for name, value in flags.items()},
    )


def examined(
    server: Any, folder: Path, changes: dict[str, object] | None = None, **replaced: Any
) -> dict[Check, Finding]:
    """The findings with other instruments."""
    settings = settings_of(server, folder, **(changes or {}))
    instruments: Instruments = replace(system_instruments(settings), **replaced)
    return examine(settings, instruments, lambda finding: None).findings


def _stored(server: Any) -> int:
    with Store.open_read_only(server.folder.store_path) as store:
        return store.counts().train_samples


def _wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)
