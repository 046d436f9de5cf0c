from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sf_contract import limits
from sf_contract.bundle import Bundle
from sf_contract.codec import WireCodec
from sf_contract.limits import MIB
from sf_contract.messages import (
    Ack,
    AlreadyStored,
    Finished,
    FinishNoted,
    Ping,
    Pong,
    Refusal,
    RefusalCode,
    Rejected,
    Role,
    Welcome,
)
from sf_server.ingest.process import wildcard_or_former
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings
from sf_server.store.store import Store

PATIENCE_S = 20.0


@dataclass
class Receiver:
    """Real ingest processes of one run, one at a time."""

    bundle: Bundle
    folder: RunFolder
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, **settings: Any) -> str:
        """Start the process; the address on which it receives, once it says so."""
        self.launch(**settings)
        for line in self._stderr():
            if "receiving devices on" in line:
                return line.split()[-1]
        raise AssertionError(f"ingest ended with {self.process.wait(PATIENCE_S)} before it received")

    def launch(self, **settings: Any) -> None:
        if not self.folder.exists():
            chosen = {"bind": "tcp://127.0.0.1:*", "expect_devices": 1, **settings}
            made = TrainSettings(bundle=str(self.bundle.folder), run=str(self.folder.path), **chosen)
            self.folder.create(made, bundle_ids=(self.bundle.bundle_id,))
        command = [sys.executable, "-m", "sf_server.ingest.process", "--run", str(self.folder.path)]
        self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    @property
    def process(self) -> subprocess.Popen[str]:
        return self.processes[-1]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def last_words(self) -> list[str]:
        """What it said from here to its end."""
        lines = list(self._stderr())
        self.process.wait(PATIENCE_S)
        return lines

    def store(self) -> Store:
        return Store.open_read_only(self.folder.store_path)

    def _stderr(self) -> Iterator[str]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            yield line.rstrip("\n")


@pytest.fixture
def receiver(tmp_path: Path, make_bundle: Any) -> Iterator[Receiver]:
    made = Receiver(bundle=make_bundle(), folder=RunFolder(tmp_path / "run"))
    yield made
    for process in made.processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stderr):
            if pipe is not None:
                pipe.close()


def test_a_device_is_served_and_both_sides_count_the_same_bytes(
    receiver: Receiver, connect_device: Any, make_sample: Any
) -> None:
    phone = connect_device(receiver.start(), bundle_id=receiver.bundle.bundle_id)
    assert isinstance(phone.ask(phone.greeting()), Welcome)
    phone.send_samples(make_sample(0), make_sample(1, role=Role.VALIDATION))
    assert isinstance(phone.receive(), Ack)
    assert phone.ask(Ping()) == Pong()
    assert phone.ask(Finished(samples=2, rejected=0, skipped_rows=4)) == FinishNoted()
    assert receiver.end() == 0
    with receiver.store() as store:
        (summary,) = store.device_summaries()
        counts = store.counts()
    assert (summary.bytes_in, summary.bytes_out) == (phone.bytes_sent, phone.bytes_received)
    assert (counts.train_samples, counts.validation_samples, counts.finished_devices) == (1, 1, 1)
    assert summary.skipped_rows == 4


def test_the_address_it_really_has_is_in_the_run_folder_and_comes_back_after_a_restart(receiver: Receiver) -> None:
    address = receiver.start()
    record = receiver.folder.ingest_record()
    assert record is not None
    assert (record.address, record.pid) == (address, receiver.process.pid)
    receiver.end(signal.SIGKILL)
    assert receiver.start() == address


@pytest.mark.parametrize("seed", range(3))
def test_after_kill_9_everything_acknowledged_is_there_and_everything_is_there_once(
    receiver: Receiver, connect_device: Any, make_sample: Any, seed: int
) -> None:
    chance = random.Random(seed)
    batches = [[make_sample(start + n, tokens=16) for n in range(8)] for start in range(0, 800, 8)]
    pending = dict(enumerate(batches))
    acknowledged: set[int] = set()
    for kill_after in (chance.randint(1, 30), chance.randint(1, 30), None):
        device = connect_device(receiver.start(), bundle_id=receiver.bundle.bundle_id)
        assert isinstance(device.ask(device.greeting(waiting_samples=1)), Welcome)
        for batch in pending.values():
            device.send_samples(*batch)
        for number, index in enumerate(list(pending), start=1):
            ack = device.receive()
            assert isinstance(ack, Ack)
            acknowledged.update(verdict.ordinal for verdict in ack.verdicts if not isinstance(verdict, Rejected))
            del pending[index]
            if number == kill_after:
                receiver.end(signal.SIGKILL)
                break
        device.close()
        with receiver.store() as store:
            stored = store.counts().train_samples
            assert len(acknowledged) <= stored
    assert acknowledged == set(range(800))
    with receiver.store() as store:
        infos = store.sample_infos(role=Role.TRAIN)
        assert len(infos) == 800 == len({info.seq for info in infos})


def test_what_was_stored_but_not_acknowledged_is_recognised_when_it_comes_again(
    receiver: Receiver, connect_device: Any, make_sample: Any
) -> None:
    address = receiver.start()
    first = connect_device(address, bundle_id=receiver.bundle.bundle_id)
    first.ask(first.greeting())
    first.send_samples(make_sample(0))
    first.receive()
    receiver.end(signal.SIGKILL)
    again = connect_device(receiver.start(), bundle_id=receiver.bundle.bundle_id)
    again.ask(again.greeting())
    again.send_samples(make_sample(0))
    ack = again.receive()
    assert isinstance(ack, Ack)
    assert ack.verdicts == (AlreadyStored(ordinal=0),)


def test_a_port_in_use_is_one_line_with_the_address_and_its_own_exit_code(receiver: Receiver) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        receiver.launch(bind=address)
        (line,) = receiver.last_words()
    assert receiver.process.returncode == 18
    assert address in line
    assert "Cure:" in line


def test_an_address_of_another_machine_cannot_be_bound(receiver: Receiver) -> None:
    receiver.launch(bind="tcp://192.0.2.1:5555", insecure=True)
    (line,) = receiver.last_words()
    assert receiver.process.returncode == 2
    assert "cannot be bound" in line


def test_a_damaged_bundle_is_refused_before_anything_is_bound(receiver: Receiver) -> None:
    receiver.bundle.graph_path.write_bytes(b"other")
    receiver.launch()
    (line,) = receiver.last_words()
    assert receiver.process.returncode == 13
    assert "was changed" in line
    assert receiver.folder.ingest_record() is None


def test_a_run_without_its_folder_is_named(receiver: Receiver, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sf_server.ingest.process", "--run", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert "there is no run" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_leaves_when_its_supervisor_is_gone(receiver: Receiver) -> None:
    receiver.start()
    assert receiver.process.stdin is not None
    receiver.process.stdin.close()
    assert receiver.process.wait(PATIENCE_S) == 129


def test_when_training_is_complete_a_device_can_finish_and_the_others_are_sent_home(
    receiver: Receiver, connect_device: Any
) -> None:
    address = receiver.start()
    phone = connect_device(address, name="phone", bundle_id=receiver.bundle.bundle_id)
    tablet = connect_device(address, name="tablet", bundle_id=receiver.bundle.bundle_id)
    for device in (phone, tablet):
        assert isinstance(device.ask(device.greeting()), Welcome)
    phone.send(Finished(samples=0, rejected=0, skipped_rows=0))
    receiver.process.send_signal(signal.SIGUSR1)
    assert phone.receive() == FinishNoted()
    farewell = tablet.receive()
    assert isinstance(farewell, Refusal)
    assert (farewell.code, farewell.retry_after_s) == (RefusalCode.CLOSED, None)
    assert receiver.process.wait(PATIENCE_S) == 0


def test_a_full_store_makes_devices_wait_and_does_not_end_ingest(
    tmp_path: Path, make_bundle: Any, connect_device: Any, make_sample: Any, receiver: Receiver
) -> None:
    receiver.bundle = make_bundle(name="fp32", codec=WireCodec.FP32)
    phone = connect_device(receiver.start(max_store_bytes=1 * MIB), bundle_id=receiver.bundle.bundle_id)
    assert isinstance(phone.ask(phone.greeting()), Welcome)
    acknowledged = 0
    for start in range(0, 5_000, 200):
        phone.send_samples(*(make_sample(start + n, tokens=16, codec=WireCodec.FP32) for n in range(200)))
        answer = phone.receive()
        if isinstance(answer, Refusal):
            break
        acknowledged += 200
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.retry_after_s) == (RefusalCode.STORE_FULL, 30)
    assert phone.ask(Ping()) == Pong()
    assert receiver.end() == 0
    assert any("no room left" in line for line in receiver.last_words())
    with receiver.store() as store:
        assert store.counts().train_samples == acknowledged > 0


def _raw_connection(address: str, nonsense: bytes) -> None:
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as stranger:
        stranger.sendall(nonsense)


def test_hostile_peers_do_not_stop_other_devices(receiver: Receiver, connect_device: Any, make_sample: Any) -> None:
    address = receiver.start()
    phone = connect_device(address, bundle_id=receiver.bundle.bundle_id)
    phone.ask(phone.greeting())
    hostile = connect_device(address, name="hostile", bundle_id=receiver.bundle.bundle_id)
    oversized = connect_device(address, name="oversized", bundle_id=receiver.bundle.bundle_id)
    attacks = [
        lambda: _raw_connection(address, b"GET / HTTP/1.1\r\n\r\n"),
        lambda: _raw_connection(address, bytes(range(256)) * 100),
        lambda: hostile.send_raw([b""]),
        lambda: hostile.send_raw([b"SFZ\x01", b"[" * 100_000]),
        lambda: hostile.send_raw([b"SFZ\x01"] * 5_000),
        lambda: hostile.send(Pong()),
        lambda: hostile.send_samples(make_sample(0)),
        lambda: oversized.send_raw([b"SFZ\x01", b"\0" * (limits.MAX_BUFFER_BYTES + 1)]),
    ]
    for ordinal, attack in enumerate(attacks):
        attack()
        phone.send_samples(make_sample(ordinal))
        assert isinstance(phone.receive(), Ack)
    refusals = [hostile.receive() for _ in range(5)]
    codes = [refusal.code for refusal in refusals if isinstance(refusal, Refusal)]
    assert codes == [RefusalCode.MALFORMED] * 4 + [RefusalCode.HELLO_FIRST]
    assert receiver.end() == 0
    with receiver.store() as store:
        assert store.counts().train_samples == len(attacks)
        assert [summary.device for summary in store.device_summaries()] == ["phone"]


@pytest.mark.parametrize(
    ("bind", "former", "first"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:4444", "tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.1:*", None, "tcp://127.0.0.1:*"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:4444", "tcp://127.0.0.1:4444"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:4444", "tcp://127.0.0.1:4444"),
        ("tcp://127.0.0.2:*", "tcp://127.0.0.1:4444", "tcp://127.0.0.2:*"),
    ],
)
def test_only_a_wildcard_port_is_replaced_by_the_former_one(bind: str, former: str | None, first: str) -> None:
    assert wildcard_or_former(bind, former) == first


def test_the_receiving_side_reaches_no_training_library() -> None:
    program = (
        "import sys, sf_server.main, sf_server.ingest.process, sf_server.supervision.supervisor, "
        "sf_server.supervision.train_command, sf_server.store.devices_command\n"
        "heavy = {'torch', 'transformers', 'peft', 'onnx', 'onnxruntime', 'datasets', 'optimum'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_S)
