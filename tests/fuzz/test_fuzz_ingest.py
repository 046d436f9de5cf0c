"""10,000 sequences of groups of messages through admission, ingest and a store: every answer is true, and nothing raises."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pytest

from fuzz.messages import BUNDLE, Frames, mutate, predict_request, samples
from sf_contract.activations import EncodedSample, pack
from sf_contract.codec import WireCodec
from sf_contract.errors import MalformedMessage
from sf_contract.frames import Envelope, RawFrame, decode, encode
from sf_contract.messages import (
    PROTOCOL_VERSION,
    Ack,
    ActivationBatch,
    AlreadyStored,
    Approval,
    Finished,
    FinishNoted,
    Hello,
    Inquiry,
    Ping,
    Pong,
    Refusal,
    Rejected,
    Stored,
    Welcome,
)
from sf_server.ingest.ingest import Ingest
from sf_server.ingest.steps import Answer
from sf_server.link.router import Arrival
from sf_server.store.schema import ADDITIONS, SCHEMA
from sf_server.store.store import Store
from support.tiny_bundle import HIDDEN, tiny_files, tiny_manifest

SEQUENCES: Final = 10_000
SEED: Final = 20261124
CREDIT_BYTES: Final = 400
IDENTITIES: Final = (b"a", b"b", b"c", b"d" * 255)
DEVICES: Final = ("phone", "tablet", "laptop")
OUTBOXES: Final = ("0" * 32, "1" * 32, "2" * 32, "3" * 32)
INQUIRY: Final = Inquiry(protocol=PROTOCOL_VERSION, software="x", device="phone", outbox=OUTBOXES[1], bundle_id=BUNDLE)
MANIFEST: Final = msgspec.structs.replace(tiny_manifest(tiny_files()), wire_codec=WireCodec.INT8)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A store in memory, shared by all sequences: to them it is a server with a past."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SCHEMA + ADDITIONS)
    memory = Store(Path(":memory:"), connection)
    yield memory
    memory.close()


@dataclass
class World:
    """A server that was just started, and what it has truly been told."""

    chance: random.Random
    store: Store
    stored: dict[tuple[str, int], bytes]
    outcomes: Counter[str]
    now_s: float = 1000.0
    sessions: dict[bytes, Hello] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lines: list[str] = []
        self.ingest = Ingest(
            store=self.store, bundles={BUNDLE: MANIFEST}, credit_bytes=CREDIT_BYTES, clock=lambda: self.now_s,
            say=self.lines.append,
        )  # fmt: skip

    def greet(self) -> None:
        """A device that belongs here comes in, so that there is something to disturb."""
        number = self.chance.randrange(len(DEVICES))
        good = self.hello(DEVICES[number], OUTBOXES[number])
        self.exchange([_arrival(self.chance.choice(IDENTITIES), encode(good))])

    def group(self) -> None:
        """Some messages arrive together."""
        self.now_s += self.chance.choice((0.0, 0.1, 1.0, 61.0, 4000.0))
        arrivals = [self.arrival() for _ in range(self.chance.randint(1, 5))]
        self.exchange(arrivals)

    def exchange(self, arrivals: list[Arrival]) -> None:
        """Ask, and compare each answer with what was asked."""
        answers = self.ingest.process(arrivals)
        assert [answer.identity for answer in answers] == [arrival.identity for arrival in arrivals]
        taken_bytes: Counter[bytes] = Counter()
        for arrival, answer in zip(arrivals, answers, strict=True):
            encode(answer.message)
            self.outcomes[type(answer.message).__name__] += 1
            self.check(arrival, answer, taken_bytes)
        if self.chance.random() < 0.2:
            self.ingest.flush()

    def arrival(self) -> Arrival:
        """A message of a connection, likely one that has greeted; some are spoiled."""
        frames = self.message()
        if self.chance.random() < 0.3:
            frames = mutate(frames, self.chance)
        known = [identity for identity in IDENTITIES if identity in self.sessions]
        return _arrival(self.chance.choice(known if known and self.chance.random() < 0.7 else IDENTITIES), frames[:7])

    def message(self) -> Frames:
        """Anything a device says."""
        chance = self.chance
        match chance.randrange(8):
            case 0:
                frames = encode(self.hello(chance.choice(DEVICES), chance.choice(OUTBOXES)))
            case 1:
                wrong = {
                    "protocol": chance.choice((0, 2)), "self_test_error": 1.0, "bundle_id": "cd" * 32,
                    "waiting_samples": 2**53 - 1,
                }  # fmt: skip
                name = chance.choice(tuple(wrong))
                hello = self.hello(chance.choice(DEVICES), chance.choice(OUTBOXES))
                frames = encode(msgspec.structs.replace(hello, **{name: wrong[name]}))
            case 2 | 3 | 4 | 5:
                frames = encode(*pack(chance.choice((BUNDLE, BUNDLE, BUNDLE, "cd" * 32)), self.samples()))
            case _:
                frames = encode(chance.choice((Ping(), Ping(activity="paused"), Finished(1, 0, 0), Pong(), INQUIRY)))
                if chance.random() < 0.1:
                    frames = encode(*predict_request(2, hidden=HIDDEN))
        return [bytes(frame) for frame in frames]

    @staticmethod
    def hello(device: str, outbox: str) -> Hello:
        """A good greeting."""
        return Hello(
            protocol=PROTOCOL_VERSION, software="x", device=device, outbox=outbox, bundle_id=BUNDLE,
            self_test_error=0.001, waiting_samples=1,
        )  # fmt: skip

    def samples(self) -> list[EncodedSample]:
        """Samples, some of them with faults, some with an ordinal that was used."""
        chance = self.chance
        found = samples(
            chance.choice((1, 1, 2, 5)), hidden=HIDDEN, first=chance.choice((0, 3, chance.randrange(3_000)))
        )
        if chance.random() < 0.2:
            found[0] = replace(found[0], label=chance.choice((None, 2, 9_999)))
        if chance.random() < 0.2:
            scales = found[-1].rows.scales.copy()
            scales[0, 0] = chance.choice((np.nan, np.inf, 3e38, -1.0))
            found[-1] = replace(found[-1], rows=replace(found[-1].rows, scales=scales))
        if chance.random() < 0.1:
            found.append(replace(found[0]))
        return found

    def check(self, arrival: Arrival, answer: Answer, taken_bytes: Counter[bytes]) -> None:
        """An answer is true."""
        envelope = _decoded(arrival)
        message = answer.message
        match message:
            case Welcome():
                assert isinstance(envelope.message, Hello)
                self.begin(arrival.identity, envelope.message)
            case Ack():
                self.check_ack(arrival.identity, envelope, message, taken_bytes)
            case Pong():
                assert isinstance(envelope.message, Ping)
            case Approval():
                assert isinstance(envelope.message, Inquiry)
            case FinishNoted():
                assert isinstance(envelope.message, Finished)
            case Refusal():
                assert message.detail
            case _:
                raise AssertionError(f"a server does not say {message}")
        if isinstance(message, Pong | FinishNoted | Ack):
            assert arrival.identity in self.sessions, "served without a greeting"

    def begin(self, identity: bytes, hello: Hello) -> None:
        """A greeting was accepted: rightly?"""
        assert hello.protocol == PROTOCOL_VERSION
        assert hello.bundle_id == BUNDLE
        assert hello.self_test_error <= MANIFEST.self_test.max_mean_error
        assert self.store.owner(hello.outbox) == hello.device, "somebody else's outbox"
        self.sessions = {i: other for i, other in self.sessions.items() if other.outbox != hello.outbox}
        self.sessions[identity] = hello

    def check_ack(self, identity: bytes, envelope: Envelope, ack: Ack, taken_bytes: Counter[bytes]) -> None:
        """Verdicts in the order of the samples, true against what was stored before; within the credit."""
        batch = envelope.message
        assert isinstance(batch, ActivationBatch)
        assert [verdict.ordinal for verdict in ack.verdicts] == [sample.ordinal for sample in batch.samples]
        nbytes = sum(buffer.nbytes for buffer in envelope.buffers)
        is_alone = taken_bytes[identity] == 0 and len(batch.samples) == 1
        assert is_alone or taken_bytes[identity] + nbytes <= CREDIT_BYTES, "more than was granted"
        taken_bytes[identity] += nbytes
        outbox = self.sessions[identity].outbox
        start = 0
        for verdict, sample in zip(ack.verdicts, batch.samples, strict=True):
            rows = envelope.buffers[0][start : start + sample.tokens].tobytes()
            start += sample.tokens
            known = (outbox, verdict.ordinal) in self.stored
            match verdict:
                case Stored():
                    assert not known, "stored twice"
                    assert sample.label in (0, 1)
                    self.stored[outbox, verdict.ordinal] = rows
                case AlreadyStored():
                    assert known, "called stored and was not"
                case Rejected():
                    self.outcomes[verdict.code] += 1


def _arrival(identity: bytes, frames: Sequence[RawFrame]) -> Arrival:
    whole = tuple(map(bytes, frames))
    return Arrival(identity=identity, frames=whole, nbytes=sum(map(len, whole)))


def _decoded(arrival: Arrival) -> Envelope:
    try:
        return decode(arrival.frames)
    except MalformedMessage:
        return Envelope(Pong())


@pytest.mark.slow
def test_every_answer_is_true_and_the_store_holds_exactly_what_was_called_stored(store: Store) -> None:
    stored: dict[tuple[str, int], bytes] = {}
    outcomes: Counter[str] = Counter()
    for number in range(SEQUENCES):
        world = World(random.Random(SEED + number), store, stored, outcomes)
        world.greet()
        for _ in range(2):
            world.group()
        assert len(world.ingest._connections._by_identity) <= len(IDENTITIES)
        assert all(line.isprintable() for line in world.lines)
    found = store._connection.execute("SELECT outbox, ordinal, rows FROM samples").fetchall()
    assert {(outbox, ordinal): rows for outbox, ordinal, rows in found} == stored
    assert len(found) == len(stored)
    for kind in ("Welcome", "Ack", "Refusal", "Pong", "FinishNoted", "label", "not-finite"):
        assert outcomes[kind] > SEQUENCES / 100, outcomes
