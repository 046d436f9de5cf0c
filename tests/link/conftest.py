"""A real ingest process that receives encrypted, and devices that talk to it with the real link."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sf_contract.activations import EncodedSample, pack
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.frames import RawFrame, decode, encode
from sf_contract.link_keys import LinkSecretKey, new_link_key, public_key_from, read_link_key
from sf_contract.messages import PROTOCOL_VERSION, AnyMessage, Hello, Role
from sf_edge.link.dealer import Link
from sf_edge.link.events import LinkEvent
from sf_edge.link.first_contact import FirstContact, make_contact
from sf_edge.link.security import LinkKeys
from sf_server.link.security import prepare_link
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings
from support.tiny_bundle import HIDDEN, write_tiny_bundle

PATIENCE_S = 20.0


@dataclass
class Server:
    """Real ingest processes of one run, one at a time, and everything that they said."""

    bundle: Bundle
    folder: RunFolder
    lines: list[str] = field(default_factory=list)
    address: str = ""
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _said: threading.Condition = field(default_factory=threading.Condition)

    @property
    def authorized(self) -> Path:
        return self.folder.path / "authorized"

    @property
    def key(self) -> LinkSecretKey:
        return read_link_key(self.folder.path / "server.key")

    @property
    def process(self) -> subprocess.Popen[str]:
        return self._processes[-1]

    def start(self, **changes: Any) -> None:
        """Make the run if there is none, start the process and wait until it receives. By default it encrypts."""
        if not self.folder.exists():
            chosen: dict[str, Any] = {
                "bind": "tcp://127.0.0.1:*", "expect_devices": 1, "authorized": str(self.authorized), **changes,
            }  # fmt: skip
            settings = TrainSettings(bundle=str(self.bundle.folder), run=str(self.folder.path), **chosen)
            self.folder.create(settings, bundle_ids=(self.bundle.bundle_id,))
            prepare_link(settings.link_choice())
        command = [sys.executable, "-m", "sf_server.ingest.process", "--run", str(self.folder.path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._processes.append(process)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        self.address = self.wait_for("receiving devices on").split()[-1]

    def authorize(self, key: LinkSecretKey, name: str) -> None:
        """Put a key into the folder, whole at once."""
        hidden = self.authorized / f".{name}"
        hidden.write_text(key.public.line())
        hidden.rename(self.authorized / f"{name}.pub")

    def withdraw(self, name: str) -> None:
        (self.authorized / f"{name}.pub").unlink()

    def wait_for(self, text: str) -> str:
        """The first line that holds a text."""
        with self._said:
            assert self._said.wait_for(lambda: self._line_with(text) is not None, PATIENCE_S), (text, self.lines)
            return str(self._line_with(text))

    def said(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    def resident_bytes(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE")

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stderr):
                if pipe is not None:
                    pipe.close()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                with self._said:
                    self.lines.append(line.rstrip("\n"))
                    self._said.notify_all()
        except ValueError:  # closed at the end of the test
            return

    def _line_with(self, text: str) -> str | None:
        return next((line for line in self.lines if text in line), None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(bundle=open_bundle(write_tiny_bundle(tmp_path / "bundle")), folder=RunFolder(tmp_path / "run"))
    yield made
    made.stop()


class Device:
    """A device with the real link and no session: says what it is told to say."""

    def __init__(self, name: str, keys: LinkKeys | None, *, address: str, bundle_id: str) -> None:
        self.name = name
        self.link = Link(address, keys)
        self._bundle_id = bundle_id

    def contact(self, *, timeout_s: float = PATIENCE_S, name: str | None = None) -> FirstContact:
        return make_contact(self.link, self.hello(name), timeout_s=timeout_s, now_s=time.monotonic)

    def hello(self, name: str | None = None) -> Hello:
        return Hello(
            protocol=PROTOCOL_VERSION, software="test", device=name or self.name,
            outbox=hashlib.sha256((name or self.name).encode()).hexdigest()[:32], bundle_id=self._bundle_id,
            self_test_error=0.0, waiting_samples=0,
        )  # fmt: skip

    def send(self, message: AnyMessage) -> None:
        self.link.send(encode(message))

    def send_raw(self, frames: Sequence[RawFrame]) -> None:
        self.link.send(frames)

    def send_samples(self, *ordinals: int, tokens: int = 3) -> int:
        """Send a batch; its payload bytes."""
        rows = encode_rows(np.ones((tokens, HIDDEN), dtype=np.float32), WireCodec.FP32)
        samples = [EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows, label=0) for ordinal in ordinals]
        message, buffers = pack(self._bundle_id, samples)
        self.link.send(encode(message, buffers))
        return sum(buffer.nbytes for buffer in buffers)

    def receive(self) -> AnyMessage:
        """The next message."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            frames = self.link.receive()
            if frames is not None:
                return decode(frames).message
            self.link.wait(end_s - time.monotonic(), wake_descriptors=())
        raise AssertionError(f"no message for {self.name}")

    def wait_for_event(self, wanted: LinkEvent) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            if wanted in self.link.events():
                return
            while self.link.receive() is not None:
                pass
            self.link.wait(0.05, wake_descriptors=())
        raise AssertionError(f"{wanted} never happened")


Connect = Callable[..., Device]


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """Makes devices; by default with a key of their own and the key that the server really has."""
    devices: list[Device] = []

    def make(
        name: str = "pi", *, key: LinkSecretKey | None = None, server_key: LinkSecretKey | None = None,
        in_the_clear: bool = False, address: str | None = None,
    ) -> Device:  # fmt: skip
        keys = None
        if not in_the_clear:
            expected = (server_key or server.key).public.hex
            keys = LinkKeys(secret=key or new_link_key(), server=public_key_from(expected))
        devices.append(Device(name, keys, address=address or server.address, bundle_id=server.bundle.bundle_id))
        return devices[-1]

    yield make
    for device in devices:
        device.link.__exit__(None, None, None)


@pytest.fixture
def key() -> LinkSecretKey:
    return new_link_key()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Poll until a condition holds."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)
