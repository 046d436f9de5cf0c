"""What the prediction server answers, without sockets and without a model."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fuzz.messages import mutate, predict_request, samples, valid_messages
from sf_contract.activations import pack, pack_rows, unpack_rows
from sf_contract.codec import EncodedRows, WireCodec, encode_rows
from sf_contract.frames import Buffer, encode
from sf_contract.limits import MAX_CLASSES_PER_TEXT, MAX_HEADER_BYTES, MAX_TEXTS_PER_REQUEST, MIB
from sf_contract.link_keys import new_link_key
from sf_contract.messages import (
    PROTOCOL_VERSION,
    AnyMessage,
    Approval,
    ClassProbability,
    Finished,
    Hello,
    Inquiry,
    Ping,
    Pong,
    PredictAnswer,
    Predicted,
    PredictRequest,
    Refusal,
    RefusalCode,
    Rejected,
    RejectionCode,
)
from sf_server.link.authorized import AuthorizedKeys
from sf_server.link.gate import Gate
from sf_server.link.notices import Notices
from sf_server.link.router import Arrival, Sender
from sf_server.serving.desk import Desk, Job
from support.tiny_bundle import HIDDEN, tiny_files, tiny_manifest
from support.wire_rows import int4_for

BUNDLE = "ab" * 32
MANIFEST = msgspec.structs.replace(tiny_manifest(tiny_files()), wire_codec=WireCodec.INT8)
FUZZED = 5_000


class Served:
    """A desk, and a model that finds class 1 for every text."""

    def __init__(self, gate: Callable[[Notices], Gate] | None = None) -> None:
        self.lines: list[str] = []
        self.now_s = 1000.0
        notices = Notices(self.lines.append)
        self.desk = Desk(
            bundles={BUNDLE: MANIFEST},
            clock=lambda: self.now_s,
            notices=notices,
            gate=None if gate is None else gate(notices),
        )

    def exchange(self, *arrivals: Arrival) -> dict[bytes, list[AnyMessage]]:
        """All answers to a group, by connection."""
        answers, jobs = self.desk.take(arrivals)
        answers = [
            *answers,
            *(self.desk.answer(job, [np.array([0.25, 0.75], np.float32)] * len(job.usable)) for job in jobs),
        ]
        found: dict[bytes, list[AnyMessage]] = {}
        for answer in answers:
            encode(answer.message)
            found.setdefault(answer.identity, []).append(answer.message)
        return found

    def ask(self, message: AnyMessage, buffers: tuple[Buffer, ...] = (), **sender: object) -> AnyMessage:
        """The answer to one message."""
        ((answer,),) = self.exchange(arrival(b"a", message, buffers, **sender)).values()
        return answer


def arrival(identity: bytes, message: AnyMessage, buffers: tuple[Buffer, ...] = (), **sender: object) -> Arrival:
    return raw_arrival(identity, [bytes(frame) for frame in encode(message, buffers)], **sender)


def raw_arrival(identity: bytes, frames: list[bytes], **sender: object) -> Arrival:
    return Arrival(identity=identity, frames=tuple(frames), nbytes=sum(map(len, frames)), sender=Sender(**sender))  # type: ignore[arg-type]


def request_of(texts: list[EncodedRows], **changes: object) -> tuple[PredictRequest, tuple[Buffer, ...]]:
    tokens = tuple(text.tokens for text in texts)
    good = PredictRequest(device="pi", bundle_id=BUNDLE, number=1, tokens=tokens)
    return msgspec.structs.replace(good, **changes), pack_rows(texts)


def rows_of(*lengths: int) -> list[EncodedRows]:
    chance = np.random.default_rng(1)
    return [encode_rows(chance.normal(size=(n, HIDDEN)).astype(np.float32), WireCodec.INT8) for n in lengths]


@pytest.mark.parametrize("codec", list(WireCodec))
def test_rows_of_a_request_come_back_as_they_were_sent(codec: WireCodec) -> None:
    hidden = 256
    chance = np.random.default_rng(2)
    sent = [
        encode_rows(chance.normal(size=(n, hidden)).astype(np.float32), codec, int4_for(codec, hidden)) for n in (3, 1)
    ]
    found = unpack_rows([3, 1], pack_rows(sent), codec=codec, hidden=hidden)
    assert [(f.rows.tobytes(), f.scales.tobytes()) for f in found] == [
        (s.rows.tobytes(), s.scales.tobytes()) for s in sent
    ]


def test_every_text_gets_its_classes_the_likeliest_first() -> None:
    answer = Served().ask(*request_of(rows_of(2, 3), number=9))
    classes = (ClassProbability(1, 0.75), ClassProbability(0, 0.25))
    assert answer == PredictAnswer(number=9, predictions=(Predicted(classes), Predicted(classes)))


def test_no_more_classes_are_named_than_were_asked_for() -> None:
    answer = Served().ask(*request_of(rows_of(2), classes=1))
    assert answer == PredictAnswer(number=1, predictions=(Predicted((ClassProbability(1, 0.75),)),))


def test_a_text_that_cannot_be_used_is_rejected_and_the_others_are_answered() -> None:
    texts = rows_of(2, 17, 1)
    scales = texts[2].scales.copy()
    scales[0, 0] = np.nan
    texts[2] = EncodedRows(codec=WireCodec.INT8, rows=texts[2].rows, scales=scales)
    answer = Served().ask(*request_of(texts))
    assert isinstance(answer, PredictAnswer)
    good, long, broken = answer.predictions
    assert isinstance(good, Predicted)
    assert isinstance(long, Rejected)
    assert isinstance(broken, Rejected)
    assert (long.ordinal, long.code, broken.ordinal, broken.code) == (
        1,
        RejectionCode.TOO_LONG,
        2,
        RejectionCode.NOT_FINITE,
    )


def test_a_request_of_another_bundle_is_refused_for_good() -> None:
    answer = Served().ask(*request_of(rows_of(2), bundle_id="cd" * 32))
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.retry_after_s) == (RefusalCode.BUNDLE, None)


@pytest.mark.parametrize(
    "buffers",
    [
        (),
        rows_of(5)[0].rows,
        (rows_of(2)[0].rows,),
        pack_rows(rows_of(3)),
        pack_rows(rows_of(2)) * 1 + pack_rows(rows_of(2))[:1],
    ],
)
def test_rows_that_do_not_fit_their_lengths_are_refused_before_anything_is_made_of_them(buffers: object) -> None:
    request, _ = request_of(rows_of(2))
    given = buffers if isinstance(buffers, tuple) else (buffers,)
    answer = Served().ask(request, given)
    assert isinstance(answer, Refusal)
    assert answer.code is RefusalCode.MALFORMED


def test_a_connection_waits_for_its_answer_before_it_asks_again_and_others_do_not_wait_for_it() -> None:
    served = Served()
    message = request_of(rows_of(2))
    found = served.exchange(*(arrival(identity, *message) for identity in (b"a", b"a", b"b")))
    assert [type(answer) for answer in found[b"a"]] == [Refusal, PredictAnswer]
    assert found[b"a"][0].code is RefusalCode.OVER_CREDIT  # type: ignore[union-attr]
    assert [type(answer) for answer in found[b"b"]] == [PredictAnswer]


def test_a_device_is_held_to_its_rate() -> None:
    served = Served(lambda notices: Gate(notices, device_bytes_per_s=100_000))
    message = request_of(rows_of(16))
    answers = [type(served.ask(*message)) for _ in range(1_000)]
    assert answers[0] is PredictAnswer
    assert answers[-1] is Refusal
    served.now_s += 60
    assert isinstance(served.ask(*message), PredictAnswer)


def test_a_key_speaks_for_its_own_device_only(tmp_path: Path) -> None:
    key = new_link_key().public
    keys = AuthorizedKeys(tmp_path, say=lambda _: None)
    (tmp_path / "pi.pub").write_text(f"splitfrozen-link-public-key {key.hex}\n")
    keys.refresh(now_s=0)
    served = Served(lambda notices: Gate(notices, authorized=keys))
    assert isinstance(served.ask(*request_of(rows_of(2)), key=key), PredictAnswer)
    codes = [
        served.ask(*request_of(rows_of(2), device="phone"), key=key),
        served.ask(*request_of(rows_of(2)), key=new_link_key().public),
        served.ask(Inquiry(protocol=PROTOCOL_VERSION, software="x", device="phone"), key=key),
    ]
    assert [code.code for code in codes if isinstance(code, Refusal)] == [
        RefusalCode.KEY_NAME, RefusalCode.NOT_AUTHORISED, RefusalCode.KEY_NAME,
    ]  # fmt: skip


def test_an_inquiry_and_a_ping_are_answered_and_samples_are_not_taken() -> None:
    served = Served()
    inquiry = Inquiry(protocol=PROTOCOL_VERSION, software="x", device="pi", bundle_id=BUNDLE, self_test_error=0.001)
    assert isinstance(served.ask(inquiry), Approval)
    refused = served.ask(msgspec.structs.replace(inquiry, self_test_error=0.5))
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.SELF_TEST
    assert isinstance(served.ask(Ping()), Pong)
    hello = Hello(
        protocol=PROTOCOL_VERSION, software="x", device="pi", outbox="0" * 32, bundle_id=BUNDLE, self_test_error=0.0,
        waiting_samples=0,
    )  # fmt: skip
    batch: tuple[AnyMessage, tuple[Buffer, ...]] = pack(BUNDLE, samples(1))
    for message, buffers in ((hello, ()), batch, (Finished(0, 0, 0), ())):
        answer = served.ask(message, buffers)
        assert isinstance(answer, Refusal)
        assert (answer.code, answer.retry_after_s) == (RefusalCode.CLOSED, None)


def test_the_largest_answer_fits_into_a_header() -> None:
    likely = ClassProbability(label=9_999, probability=0.12345678901234567)
    texts = (Predicted((likely,) * MAX_CLASSES_PER_TEXT),) * MAX_TEXTS_PER_REQUEST
    assert len(encode(PredictAnswer(number=2**53 - 1, predictions=texts))[1]) < MAX_HEADER_BYTES // 2


def test_anything_at_all_is_answered_once_within_bounded_memory() -> None:
    """Spoiled messages of every type: each has exactly one answer, which a device can read, and nothing raises."""
    chance = random.Random(20261124)
    served = Served()
    starts = [
        *valid_messages(),
        *([[bytes(f) for f in encode(*predict_request(n, hidden=HIDDEN))] for n in (1, 2, 3)] * 8),
    ]
    kinds: Counter[str] = Counter()
    groups = [
        [raw_arrival(chance.choice((b"a", b"b", b"c")), mutate(chance.choice(starts), chance)[:7]) for _ in range(5)]
        for _ in range(FUZZED // 5)
    ]
    tracemalloc.start()
    for group in groups:
        found = served.exchange(*group)
        assert {i: len(answers) for i, answers in found.items()} == Counter(a.identity for a in group)
        kinds.update(type(answer).__name__ for answers in found.values() for answer in answers)
        served.now_s += 10
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(kinds) == {"Refusal", "PredictAnswer", "Pong", "Approval"}, kinds
    assert kinds["PredictAnswer"] > FUZZED / 100
    assert most_bytes < 4 * MIB
    assert all(line.isprintable() for line in served.lines)
    assert len(served.lines) < 10


def test_only_texts_that_can_be_used_are_computed() -> None:
    _, (job,) = Served().desk.take([arrival(b"a", *request_of(rows_of(2, 17, 4)))])
    assert isinstance(job, Job)
    assert [rows.tokens for rows in job.usable] == [2, 4]
