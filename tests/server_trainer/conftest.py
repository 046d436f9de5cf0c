"""Bundles without a model, samples without a device, and a device that is only a socket."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import zmq

from sf_contract.activations import EncodedSample, pack
from sf_contract.bundle import MANIFEST_FILE, Bundle, describe_file, open_bundle
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.frames import Buffer, RawFrame, decode, encode
from sf_contract.manifest import (
    BaseModel,
    Geometry,
    Manifest,
    MeasuredError,
    Quantization,
    SelfTest,
    Task,
    TaskSpec,
    Template,
    encode_manifest,
)
from sf_contract.messages import PROTOCOL_VERSION, AnyMessage, Hello, Role
from support.wire_rows import int4_for

HIDDEN = 8
VOCABULARY = 100
MAX_TOKENS = 16
LABELS = ("no", "yes")
PATIENCE_S = 20.0

MakeBundle = Callable[..., Bundle]
MakeSample = Callable[..., EncodedSample]


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """A verified bundle folder whose graph and tokenizer are dummies: receiving does not run them."""

    def make(
        *, name: str = "bundle", task: Task = Task.TEXT_CLASSIFICATION, codec: WireCodec = WireCodec.INT8
    ) -> Bundle:
        folder = tmp_path / name
        folder.mkdir()
        for file, content in {"front.onnx": b"graph", "tokenizer.json": b"{}", "rows.bin": b"\0" * HIDDEN * 4}.items():
            (folder / file).write_bytes(content)
        (folder / MANIFEST_FILE).write_bytes(encode_manifest(_manifest(folder, name=name, task=task, codec=codec)))
        return open_bundle(folder)

    return make


@pytest.fixture
def make_sample() -> MakeSample:
    """Samples whose rows follow from their ordinal."""

    def make(
        ordinal: int,
        *,
        tokens: int = 3,
        codec: WireCodec = WireCodec.INT8,
        role: Role = Role.TRAIN,
        label: int | None = 1,
        targets: Sequence[int] | None = None,
    ) -> EncodedSample:
        rows = np.random.default_rng(ordinal).normal(size=(tokens, HIDDEN)).astype(np.float32)
        numbers = None if targets is None else np.array(targets, dtype=np.int32)
        encoded = encode_rows(rows, codec, int4_for(codec, HIDDEN))
        return EncodedSample(ordinal=ordinal, role=role, rows=encoded, label=label, targets=numbers)

    return make


class SocketDevice:
    """A device as the server sees it: a DEALER socket that says what it is told to say."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, *, name: str, bundle_id: str) -> None:
        self.name = name
        self.outbox = hashlib.sha256(name.encode()).hexdigest()[:32]
        self.bundle_id = bundle_id
        self.bytes_sent = 0
        self.bytes_received = 0
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)

    def send(self, message: AnyMessage, buffers: Sequence[Buffer] = ()) -> None:
        """Send a message."""
        self.send_raw(encode(message, buffers))

    def send_raw(self, frames: Sequence[RawFrame]) -> None:
        """Send any frames."""
        self.bytes_sent += sum(map(len, frames))
        self._socket.send_multipart(list(frames))

    def send_samples(self, *samples: EncodedSample) -> None:
        """Send a batch."""
        self.send(*pack(self.bundle_id, samples))

    def receive(self) -> AnyMessage:
        """The next answer."""
        assert self._socket.poll(int(PATIENCE_S * 1000)), f"no answer for {self.name} in {PATIENCE_S} s"
        frames = self._socket.recv_multipart()
        self.bytes_received += sum(map(len, frames))
        return decode(frames).message

    def ask(self, message: AnyMessage, buffers: Sequence[Buffer] = ()) -> AnyMessage:
        """Send a message and wait for the answer."""
        self.send(message, buffers)
        return self.receive()

    def greeting(self, *, waiting_samples: int = 0) -> Hello:
        """The device's `Hello`."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            software="test",
            device=self.name,
            outbox=self.outbox,
            bundle_id=self.bundle_id,
            self_test_error=0.01,
            waiting_samples=waiting_samples,
        )

    def close(self) -> None:
        """Leave without a word."""
        self._socket.close()


MakeDevice = Callable[..., SocketDevice]


@pytest.fixture
def connect_device() -> Iterator[MakeDevice]:
    """Connects devices, and disconnects them at the end."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    devices: list[SocketDevice] = []

    def connect(address: str, *, name: str = "phone", bundle_id: str) -> SocketDevice:
        devices.append(SocketDevice(context, address, name=name, bundle_id=bundle_id))
        return devices[-1]

    yield connect
    for device in devices:
        device.close()
    context.term()


def _manifest(folder: Path, *, name: str, task: Task, codec: WireCodec) -> Manifest:
    classification = task is Task.TEXT_CLASSIFICATION
    return Manifest(
        format_version=1,
        base_model=BaseModel(
            name=name, revision=None, model_type="gpt2", config_sha256="0" * 64, weights_sha256="1" * 64
        ),
        geometry=Geometry(split_layer=1, layers=2, hidden=HIDDEN, vocabulary=VOCABULARY, max_tokens=MAX_TOKENS),
        task=TaskSpec(
            task=task,
            template=Template(prompt="{text}", completion=None if classification else "{completion}"),
            labels=LABELS if classification else (),
        ),
        wire_codec=codec,
        quantization=Quantization(
            requested="none", choices=(), error=MeasuredError(tokens=1, text="none", mean=0.0, p99=0.0, worst=0.0)
        ),
        graph_file="front.onnx",
        tokenizer_file="tokenizer.json",
        self_test=SelfTest(token_ids=((1,),), rows_file="rows.bin", max_mean_error=0.05),
        files=tuple(describe_file(path) for path in sorted(folder.iterdir())),
        tools={},
    )
