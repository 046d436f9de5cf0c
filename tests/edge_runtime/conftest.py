"""A tiny real bundle, data files, and a small server that follows the protocol."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import zmq
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from sf_contract import activations
from sf_contract.bundle import MANIFEST_FILE, Bundle, describe_file, open_bundle
from sf_contract.codec import WireCodec
from sf_contract.errors import MalformedMessage
from sf_contract.frames import Envelope, decode, encode
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
from sf_contract.messages import (
    Ack,
    ActivationBatch,
    AlreadyStored,
    AnyMessage,
    Finished,
    FinishNoted,
    Hello,
    Ping,
    Pong,
    Refusal,
    RefusalCode,
    Rejected,
    RejectionCode,
    Stored,
    Verdict,
    Welcome,
)
from sf_edge.main import main

HIDDEN = 96
WORDS = ["[UNK]", "turn", "play", "the", "lights", "music", "on", "off", "kaput", "void", *(f"w{i}" for i in range(40))]
LABELS = ("lights", "music")


def embedding_table() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Word vectors `[words, HIDDEN]`; those of `kaput` are infinite, those of `void` are no numbers."""
    table = np.random.default_rng(7).normal(size=(len(WORDS), HIDDEN)).astype(np.float32)
    table[WORDS.index("kaput")] = np.inf
    table[WORDS.index("void")] = np.nan
    return table


def front_end_graph() -> onnx.ModelProto:
    """Embedding, packing of the real rows, and the int8 wire codec, with the inputs and outputs of a bundle."""

    def constant(name: str, values: object, dtype: type) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)

    padded = 128
    initializers = [
        constant("table", embedding_table(), np.float32),
        constant("flat", [-1, HIDDEN], np.int64),
        constant("pads", [0, 0, 0, padded - HIDDEN], np.int64),
        constant("grouped", [-1, padded // 64, 64], np.int64),
        constant("ungrouped", [-1, padded], np.int64),
        constant("group_axis", [2], np.int64),
        constant("peak", 127, np.float32),
        constant("negative_peak", -127, np.float32),
        constant("zero", 0, np.float32),
        constant("one", 1, np.float32),
        constant("start", [0], np.int64),
        constant("stop", [HIDDEN], np.int64),
        constant("channel_axis", [1], np.int64),
    ]
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["embedded"]),
        node("Reshape", ["embedded", "flat"], ["all_rows"]),
        node("Gather", ["all_rows", "row_index"], ["real_rows"]),
        node("Pad", ["real_rows", "pads"], ["wide"]),
        node("Reshape", ["wide", "grouped"], ["groups"]),
        node("Abs", ["groups"], ["sizes"]),
        node("ReduceMax", ["sizes", "group_axis"], ["peaks"], keepdims=1),
        node("Div", ["peaks", "peak"], ["steps"]),
        node("Equal", ["peaks", "zero"], ["is_unused"]),
        node("Where", ["is_unused", "one", "steps"], ["group_scales"]),
        node("Div", ["groups", "group_scales"], ["scaled"]),
        node("Round", ["scaled"], ["rounded"]),
        node("Clip", ["rounded", "negative_peak", "peak"], ["levels"]),
        node("Reshape", ["levels", "ungrouped"], ["wide_levels"]),
        node("Slice", ["wide_levels", "start", "stop", "channel_axis"], ["row_levels"]),
        node("Cast", ["row_levels"], ["rows"], to=TensorProto.INT8),
        node("Squeeze", ["group_scales", "group_axis"], ["scales"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "front_end",
        [
            value("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            value("attention_mask", TensorProto.INT64, ["batch", "tokens"]),
            value("row_index", TensorProto.INT64, ["rows"]),
        ],
        [
            value("rows", TensorProto.INT8, ["rows", HIDDEN]),
            value("scales", TensorProto.FLOAT, ["rows", padded // 64]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def build_bundle(
    folder: Path, *, task: Task = Task.TEXT_CLASSIFICATION, name: str = "tiny", worst: float = 0.02
) -> Bundle:
    """Write a bundle whose front end is the embedding of a few words."""
    folder.mkdir(parents=True)
    token_ids = ((1, 3, 4, 7), (2, 3, 5))
    (folder / "front.onnx").write_bytes(front_end_graph().SerializeToString())
    write_tokenizer(folder / "tokenizer.json")
    rows = embedding_table()[[i for ids in token_ids for i in ids]]
    (folder / "self_test.f32").write_bytes(rows.astype("<f4").tobytes())
    is_classification = task is Task.TEXT_CLASSIFICATION
    manifest = Manifest(
        format_version=1,
        base_model=BaseModel(
            name=name, revision=None, model_type="tiny", config_sha256="0" * 64, weights_sha256="1" * 64
        ),
        geometry=Geometry(split_layer=1, layers=2, hidden=HIDDEN, vocabulary=len(WORDS), max_tokens=16),
        task=TaskSpec(
            task=task,
            template=Template(prompt="{text}" if is_classification else "{prompt}", completion=None),
            labels=LABELS if is_classification else (),
        ),
        wire_codec=WireCodec.INT8,
        quantization=Quantization(
            requested="none",
            choices=(),
            error=MeasuredError(tokens=7, text="seven words", mean=0.01, p99=0.01, worst=0.01),
        ),
        graph_file="front.onnx",
        tokenizer_file="tokenizer.json",
        self_test=SelfTest(token_ids=token_ids, rows_file="self_test.f32", max_mean_error=worst),
        files=tuple(describe_file(folder / file) for file in ("front.onnx", "self_test.f32", "tokenizer.json")),
        tools={},
    )
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    return open_bundle(folder)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A classification bundle."""
    return build_bundle(tmp_path_factory.mktemp("bundles") / "classify")


@pytest.fixture(scope="session")
def completion_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A causal language modelling bundle."""
    return build_bundle(tmp_path_factory.mktemp("bundles") / "complete", task=Task.CAUSAL_LM)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Builds a bundle under the test's own folder."""
    return lambda folder, **options: build_bundle(tmp_path / folder, **options)


def sentences(count: int, *, seed: int = 3) -> list[dict[str, str]]:
    """Distinct labelled texts."""
    random = np.random.default_rng(seed)
    words = WORDS[10:]
    return [
        {"text": f"{LABELS[i % 2]} w{i % 40} " + " ".join(random.choice(words, size=2 + i % 9)), "label": LABELS[i % 2]}
        for i in range(count)
    ]


@dataclass
class Faults:
    """What the server does wrong, or refuses."""

    reject_ordinals: frozenset[int] = frozenset()
    refusals: list[Refusal] = field(default_factory=list)
    """Answered to the next Hellos, in order."""
    drop_acks: int = 0
    """How many acks are stored but never sent."""
    silent_from: int | None = None
    """From this many stored samples on, batches are neither stored nor answered."""
    garbage_first: bool = False
    """Send bytes that are no message before the Welcome."""


class ProtocolServer:
    """A ROUTER in a thread that stores samples in memory, acknowledges them and checks what devices do.

    Stopping and starting it keeps what is stored and forgets the connections, like a server with a durable store.
    """

    def __init__(self, address: str, bundle: Bundle, *, credit_bytes: int, faults: Faults) -> None:
        self.address = address
        self.bundle = bundle
        self.credit_bytes = credit_bytes
        self.faults = faults
        self.stored: dict[tuple[str, int], activations.EncodedSample] = {}
        self.repeats = 0
        self.hellos: list[Hello] = []
        self.finished: list[Finished] = []
        self.problems: list[str] = []
        self._known: dict[bytes, str] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def __enter__(self) -> ProtocolServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        self._stopping.clear()
        bound = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(bound,))
        self._thread.start()
        assert bound.wait(10)

    def stop(self) -> None:
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None
            self._known.clear()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Block until something the server saw makes the condition true."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_s), "the server never saw it"

    def ordinals(self) -> list[int]:
        return sorted(ordinal for _, ordinal in self.stored)

    def _serve(self, bound: threading.Event) -> None:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.setsockopt(zmq.LINGER, 200)
            deadline = time.monotonic() + 5
            while True:
                try:
                    router.bind(self.address)
                    break
                except zmq.ZMQError:  # the port of the previous start is still being released
                    if time.monotonic() > deadline:
                        raise
            self.address = router.getsockopt_string(zmq.LAST_ENDPOINT)
            bound.set()
            while not self._stopping.is_set():
                if router.poll(20):
                    peer, *frames = router.recv_multipart()
                    with self._changed:
                        for answer in self._answers(peer, frames):
                            router.send_multipart([peer, *answer])
                        self._changed.notify_all()

    def _answers(self, peer: bytes, frames: list[bytes]) -> list[list[bytes | memoryview]]:
        try:
            envelope = decode(frames)
        except MalformedMessage as problem:
            self.problems.append(str(problem))
            return []
        if isinstance(envelope.message, Hello):
            return self._greet(peer, envelope.message)
        if peer not in self._known:
            return [encode(Refusal(code=RefusalCode.HELLO_FIRST, detail="who are you?"))]
        return self._answer_known(peer, envelope)

    def _answer_known(self, peer: bytes, envelope: Envelope) -> list[list[bytes | memoryview]]:
        match envelope.message:
            case ActivationBatch() as batch:
                return self._store(peer, batch, envelope.buffers)
            case Finished() as finished:
                self.finished.append(finished)
                return [encode(FinishNoted())]
            case Ping():
                return [encode(Pong())]
        self.problems.append(f"unexpected {envelope.message}")
        return []

    def _greet(self, peer: bytes, hello: Hello) -> list[list[bytes | memoryview]]:
        self.hellos.append(hello)
        if self.faults.refusals:
            return [encode(self.faults.refusals.pop(0))]
        self._known[peer] = hello.outbox
        welcome: AnyMessage = Welcome(software="test", credit_bytes=self.credit_bytes)
        if hello.bundle_id != self.bundle.bundle_id:
            welcome = Refusal(code=RefusalCode.BUNDLE, detail="another bundle")
        garbage: list[list[bytes | memoryview]] = [[b"\xffnot", b"a message"]] if self.faults.garbage_first else []
        return [*garbage, encode(welcome)]

    def _store(self, peer: bytes, batch: ActivationBatch, buffers: Sequence[Any]) -> list[list[bytes | memoryview]]:
        if self.faults.silent_from is not None and len(self.stored) >= self.faults.silent_from:
            return []
        with_targets = self.bundle.manifest.task.task is Task.CAUSAL_LM
        samples = activations.unpack(batch, buffers, codec=WireCodec.INT8, hidden=HIDDEN, with_targets=with_targets)
        if sum(sample.nbytes for sample in samples) > self.credit_bytes and len(samples) > 1:
            self.problems.append("a batch exceeds the credit")
        verdicts = tuple(self._verdict(self._known[peer], sample) for sample in samples)
        if self.faults.drop_acks:
            self.faults.drop_acks -= 1
            return []
        return [encode(Ack(verdicts=verdicts, credit_bytes=self.credit_bytes))]

    def _verdict(self, outbox: str, sample: activations.EncodedSample) -> Verdict:
        if sample.ordinal in self.faults.reject_ordinals:
            return Rejected(ordinal=sample.ordinal, code=RejectionCode.LABEL, detail="not a label")
        before = self.stored.setdefault((outbox, sample.ordinal), sample)
        if before is sample:
            return Stored(ordinal=sample.ordinal)
        self.repeats += 1
        if not np.array_equal(before.rows.rows, sample.rows.rows):
            self.problems.append(f"sample {sample.ordinal} came again with other rows")
        return AlreadyStored(ordinal=sample.ordinal)


@pytest.fixture
def make_server(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[Callable[..., ProtocolServer]]:
    """Makes servers with the faults named, each on its own address; at the end insists that devices behaved."""
    servers: list[ProtocolServer] = []

    def make(
        of: Bundle = bundle, *, address: str | None = None, credit_bytes: int = 64 * 1024, **faults: Any
    ) -> ProtocolServer:
        chosen = address or f"ipc://{tmp_path_factory.mktemp('ipc')}/s"
        servers.append(ProtocolServer(chosen, of, credit_bytes=credit_bytes, faults=Faults(**faults)))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
        assert server.problems == []


@pytest.fixture
def server(make_server: Callable[..., ProtocolServer]) -> Iterator[ProtocolServer]:
    """A well-behaved server that is running."""
    with make_server() as running:
        yield running


@dataclass(frozen=True)
class Outcome:
    """How a command ended, what it printed, and its JSON result if it printed one."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        return dict(msgspec.json.decode(self.out))


class Edge:
    """A device with a folder of its own: writes its data, runs `sf-edge` in this process or as one of its own."""

    def __init__(self, folder: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.outbox = folder / "outbox"
        self.started: list[subprocess.Popen[str]] = []
        self.bundle_id = bundle.bundle_id
        self._bundle = bundle
        self._capsys = capsys

    def write(self, rows: Sequence[dict[str, Any] | str] | int, *, name: str = "rows.jsonl") -> Path:
        """Write records, raw lines, or a number of sentences as a JSON Lines file."""
        records = sentences(rows) if isinstance(rows, int) else rows
        lines = [row if isinstance(row, str) else msgspec.json.encode(row).decode() for row in records]
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    def run(self, server: ProtocolServer, data: Path, /, **changes: object) -> Outcome:
        """`sf-edge run` with ordinary options and changes to them."""
        return self.command("run", **self.options(server, data, **changes))

    def start(
        self, server: ProtocolServer, data: Path | str, /, *, stdin: int | None = None, **changes: object
    ) -> subprocess.Popen[str]:
        """The same as a process; `stdin` as `subprocess.Popen` takes it."""
        program = [sys.executable, "-c", "import sys; from sf_edge.main import main; sys.exit(main())"]
        words = [*program, "run", *as_words(self.options(server, data, **changes))]
        self.started.append(
            subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return self.started[-1]

    def wait_until_computed(self, samples: int) -> None:
        """Look at the outbox until a process has put so many samples into it."""
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s:
            found = self.command("status", self.outbox, json=True)
            if found.code == 0 and found.summary["waiting"] == samples:
                return
            time.sleep(0.05)
        raise AssertionError("the samples never appeared in the outbox")

    def command(self, command: str, *positional: object, **options: object) -> Outcome:
        """Any command, in this process."""
        self._capsys.readouterr()
        code = main([command, *map(str, positional), *as_words(options)])
        captured = self._capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    def options(self, server: ProtocolServer, data: Path | str, /, **changes: object) -> dict[str, object]:
        given = {"bundle": self._bundle.folder, "server": server.address, "data": data}
        # What this machine is busy with must not decide a test, nor should a test make its own process nicer.
        governor = {"nice": 0, "no_governor": True}
        return {**given, "device": "pi", "outbox": self.outbox, **governor, **changes}


def as_words(options: dict[str, object]) -> list[str]:
    """Keyword arguments as command-line options; True is a flag."""
    pairs = [("--" + name.replace("_", "-"), value) for name, value in options.items() if value is not False]
    return [word for name, value in pairs for word in ([name] if value is True else [name, str(value)])]


@pytest.fixture
def edge(tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> Iterator[Edge]:
    """A device; what it started and still runs at the end is killed."""
    device = Edge(tmp_path, bundle, capsys)
    yield device
    for process in device.started:
        process.kill()
        process.communicate()


@pytest.fixture
def seeded() -> np.random.Generator:
    """A seeded source of randomness, so that a failure can be repeated."""
    return np.random.default_rng(20261124)


@pytest.fixture
def embeddings() -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the bundle's front end computes: one row per word, float32 `[words, HIDDEN]`."""
    return embedding_table()
