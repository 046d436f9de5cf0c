from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sf_contract.activations import EncodedSample, pack
from sf_contract.bundle import Bundle
from sf_contract.codec import WireCodec
from sf_contract.errors import DiskFull
from sf_contract.frames import RawFrame, encode
from sf_contract.limits import MIB
from sf_contract.messages import (
    PROTOCOL_VERSION,
    Ack,
    AlreadyStored,
    AnyMessage,
    Approval,
    Finished,
    FinishNoted,
    Hello,
    Inquiry,
    Ping,
    Pong,
    Refusal,
    RefusalCode,
    Rejected,
    Stored,
    Welcome,
)
from sf_server.ingest.ingest import Ingest
from sf_server.link.connections import FORGET_CONNECTION_S
from sf_server.link.notices import MAX_TOPICS
from sf_server.link.router import Arrival
from sf_server.store.store import Store

CREDIT_BYTES = 100_000
PHONE, TABLET = b"phone-link", b"tablet-link"


@dataclass
class Bench:
    """An ingest without sockets, and everything it says."""

    bundle: Bundle
    store: Store
    now_s: float = 1000.0
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ingest = self.restarted()

    def restarted(self) -> Ingest:
        return Ingest(
            store=self.store,
            bundles={self.bundle.bundle_id: self.bundle.manifest},
            credit_bytes=CREDIT_BYTES,
            clock=lambda: self.now_s,
            say=self.lines.append,
        )

    def group(self, *arrivals: Arrival) -> list[AnyMessage]:
        """Answers to messages that arrive together, in the order of the messages."""
        answers = self.ingest.process(arrivals)
        assert [answer.identity for answer in answers] == [arrival.identity for arrival in arrivals]
        return [answer.message for answer in answers]

    def ask(self, arrival: Arrival) -> AnyMessage:
        (answer,) = self.group(arrival)
        return answer

    def hello(
        self, identity: bytes = PHONE, *, device: str = "phone", outbox: str = "1", error: float = 0.01
    ) -> Arrival:
        message = Hello(
            protocol=PROTOCOL_VERSION,
            software="test",
            device=device,
            outbox=outbox * 32,
            bundle_id=self.bundle.bundle_id,
            self_test_error=error,
            waiting_samples=0,
        )
        return _arrival(identity, encode(message))

    def inquiry(self, identity: bytes = TABLET, **changes: Any) -> Arrival:
        message = Inquiry(protocol=PROTOCOL_VERSION, software="test", device="phone", bundle_id=self.bundle.bundle_id)
        return _arrival(identity, encode(msgspec.structs.replace(message, **changes)))

    def batch(self, *samples: EncodedSample, identity: bytes = PHONE) -> Arrival:
        return _arrival(identity, encode(*pack(self.bundle.bundle_id, samples)))


def _arrival(identity: bytes, frames: Sequence[RawFrame]) -> Arrival:
    return Arrival(identity=identity, frames=tuple(map(bytes, frames)), nbytes=sum(map(len, frames)))


FINISHED = encode(Finished(samples=1, rejected=0, skipped_rows=2))
PING = encode(Ping())


@pytest.fixture
def bench(tmp_path: Path, make_bundle: Any) -> Iterator[Bench]:
    with Store.open(tmp_path / "store.sqlite", max_bytes=64 * MIB) as store:
        yield Bench(bundle=make_bundle(), store=store)


def test_a_whole_visit_is_answered_message_by_message(bench: Bench, make_sample: Any) -> None:
    welcome = bench.ask(bench.hello())
    assert isinstance(welcome, Welcome)
    assert welcome.credit_bytes == CREDIT_BYTES
    ack = bench.ask(bench.batch(make_sample(0), make_sample(1)))
    assert ack == Ack(verdicts=(Stored(ordinal=0), Stored(ordinal=1)), credit_bytes=CREDIT_BYTES)
    assert bench.ask(_arrival(PHONE, PING)) == Pong()
    assert bench.ask(_arrival(PHONE, FINISHED)) == FinishNoted()
    assert bench.store.counts().finished_devices == 1


def test_what_holds_a_device_back_is_written_down_until_it_says_otherwise(bench: Bench) -> None:
    bench.ask(bench.hello())
    assert bench.ask(_arrival(PHONE, encode(Ping(activity="paused: battery at 12 %")))) == Pong()
    bench.ingest.flush()
    assert bench.store.device_summaries()[0].activity == "paused: battery at 12 %"
    bench.ask(_arrival(PHONE, PING))
    bench.ingest.flush()
    assert bench.store.device_summaries()[0].activity == ""


def test_a_new_greeting_ends_what_was_said_before_even_in_the_same_group(bench: Bench) -> None:
    bench.ask(bench.hello())
    bench.group(_arrival(PHONE, encode(Ping(activity="paused: battery at 12 %"))), bench.hello())
    assert bench.store.device_summaries()[0].activity == ""


def test_an_activity_that_no_terminal_should_show_is_no_message(bench: Bench) -> None:
    bench.ask(bench.hello())
    refused = bench.ask(_arrival(PHONE, encode(Ping(activity="paused\x1b[2J"))))
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.MALFORMED
    bench.ingest.flush()
    assert bench.store.device_summaries()[0].activity == ""


def test_an_inquiry_is_approved_with_the_servers_time_and_nothing_of_it_is_kept(bench: Bench) -> None:
    answer = bench.ask(bench.inquiry(outbox="1" * 32, self_test_error=0.01))
    assert isinstance(answer, Approval)
    assert answer.clock_s == bench.now_s
    bench.ingest.flush()
    assert bench.store.device_summaries() == []
    first = bench.ask(_arrival(TABLET, PING))
    assert isinstance(first, Refusal), "no session came of it"
    assert first.code is RefusalCode.HELLO_FIRST


def test_an_inquiry_leaves_the_session_of_the_same_device_alone(bench: Bench, make_sample: Any) -> None:
    bench.ask(bench.hello())
    for identity in (TABLET, PHONE):
        assert isinstance(bench.ask(bench.inquiry(identity, outbox="1" * 32)), Approval)
    assert isinstance(bench.ask(bench.batch(make_sample(0))), Ack)
    assert bench.store.device_summaries()[0].self_test_error == 0.01


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"protocol": PROTOCOL_VERSION + 1}, RefusalCode.PROTOCOL),
        ({"bundle_id": "0" * 64}, RefusalCode.BUNDLE),
        ({"self_test_error": 0.9}, RefusalCode.SELF_TEST),
        ({"outbox": "1" * 32, "device": "other"}, RefusalCode.DEVICE_NAME),
        ({"outbox": "2" * 32}, RefusalCode.DEVICE_NAME),
        ({"outbox": None}, RefusalCode.DEVICE_NAME),
    ],
)
def test_an_inquiry_is_refused_for_what_a_hello_would_be(bench: Bench, changes: Any, code: RefusalCode) -> None:
    bench.ask(bench.hello())
    answer = bench.ask(bench.inquiry(**changes))
    assert isinstance(answer, Refusal)
    assert answer.code is code


def test_an_inquiry_without_a_bundle_is_not_judged_by_one(bench: Bench) -> None:
    assert isinstance(bench.ask(bench.inquiry(bundle_id=None, self_test_error=0.9)), Approval)


def test_an_inquiry_to_a_server_that_needs_nothing_more_says_so(bench: Bench) -> None:
    bench.ingest.close()
    answer = bench.ask(bench.inquiry())
    assert isinstance(answer, Refusal)
    assert answer.code is RefusalCode.CLOSED


def test_messages_that_arrive_together_are_answered_in_order(bench: Bench, make_sample: Any) -> None:
    answers = bench.group(
        bench.hello(),
        bench.batch(make_sample(0)),
        bench.hello(TABLET, device="tablet", outbox="2"),
        bench.batch(make_sample(0), identity=TABLET),
        bench.batch(make_sample(0)),
        _arrival(PHONE, FINISHED),
    )
    assert [type(answer) for answer in answers] == [Welcome, Ack, Welcome, Ack, Ack, FinishNoted]
    assert answers[4] == Ack(verdicts=(AlreadyStored(ordinal=0),), credit_bytes=CREDIT_BYTES)


def test_bad_samples_are_rejected_and_the_rest_of_the_batch_is_kept(bench: Bench, make_sample: Any) -> None:
    bench.ask(bench.hello())
    ack = bench.ask(bench.batch(make_sample(0), make_sample(1, label=7), make_sample(2), make_sample(3, tokens=17)))
    assert isinstance(ack, Ack)
    assert [type(verdict) for verdict in ack.verdicts] == [Stored, Rejected, Stored, Rejected]
    assert [verdict.ordinal for verdict in ack.verdicts] == [0, 1, 2, 3]
    (phone,) = bench.store.device_summaries()
    assert (phone.samples, phone.rejected) == (2, 2)


def test_a_batch_of_bad_samples_only_is_acknowledged_too(bench: Bench, make_sample: Any) -> None:
    bench.ask(bench.hello())
    ack = bench.ask(bench.batch(make_sample(0, label=7)))
    assert isinstance(ack, Ack)
    assert isinstance(ack.verdicts[0], Rejected)


@pytest.mark.parametrize("what", ["batch", "finished", "ping"])
def test_who_did_not_greet_is_asked_to_do_so_at_once(bench: Bench, make_sample: Any, what: str) -> None:
    known = {"finished": _arrival(PHONE, FINISHED), "ping": _arrival(PHONE, PING)}
    refused = bench.ask(known.get(what) or bench.batch(make_sample(0)))
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.retry_after_s) == (RefusalCode.HELLO_FIRST, 0)
    assert bench.store.counts().devices == 0


def test_after_a_restart_a_device_greets_again_and_its_repeats_are_recognised(bench: Bench, make_sample: Any) -> None:
    bench.group(bench.hello(), bench.batch(make_sample(0)))
    bench.ingest = bench.restarted()
    refused = bench.ask(bench.batch(make_sample(0)))
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.HELLO_FIRST
    _, ack = bench.group(bench.hello(), bench.batch(make_sample(0), make_sample(1)))
    assert ack == Ack(verdicts=(AlreadyStored(ordinal=0), Stored(ordinal=1)), credit_bytes=CREDIT_BYTES)


def test_a_new_connection_of_a_device_ends_its_former_one(bench: Bench, make_sample: Any) -> None:
    bench.ask(bench.hello(b"first"))
    assert isinstance(bench.ask(bench.hello(b"second")), Welcome)
    refused = bench.ask(bench.batch(make_sample(0), identity=b"first"))
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.HELLO_FIRST


def test_a_device_that_greets_again_starts_with_its_whole_credit(bench: Bench, make_sample: Any) -> None:
    large = bench.batch(*(make_sample(n, tokens=16) for n in range(256)))
    answers = bench.group(bench.hello(), large, large, bench.hello(), large, large)
    assert [type(answer) for answer in answers] == [Welcome, Ack, Ack, Welcome, Ack, Ack]


def test_two_live_devices_cannot_have_one_name(bench: Bench) -> None:
    bench.ask(bench.hello(PHONE))
    refused = bench.ask(bench.hello(TABLET, outbox="2"))
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.DEVICE_NAME
    assert any("phone is refused" in line for line in bench.lines)


def test_the_name_of_a_finished_device_is_free(bench: Bench) -> None:
    bench.group(bench.hello(PHONE), _arrival(PHONE, FINISHED))
    assert isinstance(bench.ask(bench.hello(TABLET, outbox="2")), Welcome)


def test_an_outbox_stays_with_its_device_over_a_restart(bench: Bench) -> None:
    bench.ask(bench.hello())
    bench.ingest = bench.restarted()
    refused = bench.ask(bench.hello(device="clone"))
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.DEVICE_NAME


def test_credit_counts_what_arrived_and_is_not_answered(bench: Bench, make_sample: Any) -> None:
    bench.ask(bench.hello())
    large = [make_sample(n, tokens=16) for n in range(256)]
    batches = [bench.batch(*large) for _ in range(4)]
    answers = bench.group(*batches)
    assert [type(answer) for answer in answers] == [Ack, Ack, Refusal, Refusal]
    assert isinstance(answers[2], Refusal)
    assert answers[2].code is RefusalCode.OVER_CREDIT
    assert isinstance(bench.ask(batches[2]), Ack)


MALFORMED = [
    [],
    [b""],
    [b"GET / HTTP/1.1\r\n"],
    [b"SFZ\x01"],
    [b"SFZ\x01", b""],
    [b"SFZ\x02", b"{}"],
    [b"SFZ\x01", b'{"message":{"type":"ping"},"buffers":[{"dtype":"int8","shape":[1]}]}'],
    [b"SFZ\x01", b'{"message":{"type":"ping"},"buffers":[{"dtype":"int8","shape":[1]}]}', b"x"],
    [b"SFZ\x01", b'{"message":{"type":"pong"}}'],
    [b"SFZ\x01", b'{"message":{"type":"ping","x":1}}'],
    [b"SFZ\x01", b"[" * 100_000],
    [b"SFZ\x01", b"\xff\xfe" * 100],
    [b"SFZ\x01", b"{}", b"", b"", b"", b""],
]


@pytest.mark.parametrize("frames", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_no_message_is_refused_and_disturbs_nobody(bench: Bench, make_sample: Any, frames: list[bytes]) -> None:
    bench.ask(bench.hello())
    refused, ack = bench.group(_arrival(TABLET, frames), bench.batch(make_sample(0)))
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.MALFORMED
    assert refused.retry_after_s is not None
    assert isinstance(ack, Ack)


def test_malformed_messages_are_reported_once_per_device(bench: Bench) -> None:
    bench.ask(bench.hello())
    for number in range(5):
        bench.ask(_arrival(PHONE, [b"nonsense", b"nonsense"]))
        bench.ask(_arrival(b"stranger %d" % number, [b"nonsense", b"nonsense"]))
    assert len(bench.lines) == 2
    assert bench.lines[0].startswith("phone sent something")
    bench.ingest.flush()
    (phone,) = bench.store.device_summaries()
    assert phone.malformed == 5


def test_strangers_cannot_fill_the_screen(bench: Bench) -> None:
    for number in range(MAX_TOPICS + 100):
        bench.ask(bench.hello(b"%d" % number, device=f"stranger-{number}", error=0.9))
    assert len(bench.lines) == MAX_TOPICS + 1
    assert "not told any more" in bench.lines[-1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.one_of(st.just(b"SFZ\x01"), st.binary(max_size=40)), max_size=6))
def test_any_frames_get_an_answer(bench: Bench, frames: list[bytes]) -> None:
    assert isinstance(bench.ask(_arrival(TABLET, frames)), Refusal)


@pytest.fixture
def full_bench(tmp_path: Path, make_bundle: Any, make_sample: Any) -> Iterator[Bench]:
    """One whose store has no room left for samples."""
    bundle = make_bundle(codec=WireCodec.FP32)
    with Store.open(tmp_path / "store.sqlite", max_bytes=1 * MIB) as store:
        bench = Bench(bundle=bundle, store=store)
        bench.ask(bench.hello())
        bench.ask(bench.batch(make_sample(0, codec=WireCodec.FP32)))
        filling = [make_sample(1000 + n, tokens=16, codec=WireCodec.FP32) for n in range(8)]
        with pytest.raises(DiskFull):
            for round_number in range(1000):
                renamed = [
                    EncodedSample(ordinal=s.ordinal + 100 * round_number, role=s.role, rows=s.rows, label=1)
                    for s in filling
                ]
                store.add(device="phone", outbox="1" * 32, bundle_id=bundle.bundle_id, samples=renamed)
        yield bench


def test_a_full_store_makes_devices_wait_and_loses_nothing(full_bench: Bench, make_sample: Any) -> None:
    kept = full_bench.store.counts().train_samples
    large = [make_sample(n, tokens=16, codec=WireCodec.FP32) for n in range(10_000, 10_150)]
    for _ in range(3):
        refused = full_bench.ask(full_bench.batch(*large))
        assert isinstance(refused, Refusal)
        assert (refused.code, refused.retry_after_s) == (RefusalCode.STORE_FULL, 30)
    assert full_bench.store.counts().train_samples == kept
    assert len([line for line in full_bench.lines if "no room left" in line]) == 1


def test_while_the_store_is_full_repeats_and_endings_are_still_answered(full_bench: Bench, make_sample: Any) -> None:
    large = [make_sample(n, tokens=16, codec=WireCodec.FP32) for n in range(10_000, 10_150)]
    refused, noted, pong = full_bench.group(full_bench.batch(*large), _arrival(PHONE, FINISHED), _arrival(PHONE, PING))
    assert isinstance(refused, Refusal)
    assert noted == FinishNoted()
    assert pong == Pong()
    ack = full_bench.ask(full_bench.batch(make_sample(0, codec=WireCodec.FP32)))
    assert isinstance(ack, Ack)
    assert ack.verdicts == (AlreadyStored(ordinal=0),)
    assert full_bench.lines[-1] == "there is room for samples again"


class NoRoomAtAll(Store):
    """A store on a disk where not even a counter fits."""

    def note_hello(self, **values: Any) -> None:
        raise DiskFull("no room left", cure="free some")


def test_when_nothing_can_be_noted_a_greeting_is_refused_for_now(
    tmp_path: Path, make_bundle: Any, make_sample: Any
) -> None:
    with NoRoomAtAll.open(tmp_path / "store.sqlite", max_bytes=8 * MIB) as store:
        bench = Bench(bundle=make_bundle(), store=store)
        refused, also = bench.group(bench.hello(), bench.batch(make_sample(0)))
        assert isinstance(refused, Refusal)
        assert isinstance(also, Refusal)
        assert refused.code is also.code is RefusalCode.STORE_FULL
        again = bench.ask(bench.batch(make_sample(0)))
        assert isinstance(again, Refusal)
        assert again.code is RefusalCode.HELLO_FIRST


def test_when_training_is_complete_devices_may_finish_and_send_nothing_more(bench: Bench, make_sample: Any) -> None:
    bench.group(bench.hello(), bench.hello(TABLET, device="tablet", outbox="2"))
    bench.ingest.close()
    noted, batch, greeting = bench.group(
        _arrival(PHONE, FINISHED), bench.batch(make_sample(0), identity=TABLET), bench.hello(b"late", outbox="3")
    )
    assert noted == FinishNoted()
    for refused in (batch, greeting):
        assert isinstance(refused, Refusal)
        assert (refused.code, refused.retry_after_s) == (RefusalCode.CLOSED, None)
    (farewell,) = bench.ingest.farewells()
    assert farewell.identity == TABLET
    assert farewell.message == batch


def test_bytes_are_counted_both_ways_and_written_with_the_next_commit(bench: Bench, make_sample: Any) -> None:
    hello, batch = bench.hello(), bench.batch(make_sample(0))
    bench.group(hello, batch)
    bench.ingest.note_sent(PHONE, 77)
    (phone,) = bench.store.device_summaries()
    assert (phone.bytes_in, phone.bytes_out) == (hello.nbytes + batch.nbytes, 0)
    bench.ingest.flush()
    bench.ingest.flush()
    (phone,) = bench.store.device_summaries()
    assert (phone.bytes_in, phone.bytes_out) == (hello.nbytes + batch.nbytes, 77)


def test_a_connection_that_was_silent_for_long_is_forgotten(bench: Bench, make_sample: Any) -> None:
    bench.ask(bench.hello())
    bench.now_s += FORGET_CONNECTION_S
    bench.ingest.flush()
    refused = bench.ask(bench.batch(make_sample(0)))
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.HELLO_FIRST


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deliveries=st.lists(st.tuples(st.sampled_from([PHONE, TABLET]), st.integers(0, 6)), min_size=1, max_size=25))
def test_every_acknowledged_sample_is_stored_once_whatever_is_sent_again(
    tmp_path_factory: pytest.TempPathFactory, bench: Bench, make_sample: Any, deliveries: list[tuple[bytes, int]]
) -> None:
    path = tmp_path_factory.mktemp("stores") / "store.sqlite"
    with Store.open(path, max_bytes=8 * MIB) as store:
        fresh = Bench(bundle=bench.bundle, store=store)
        fresh.group(fresh.hello(PHONE), fresh.hello(TABLET, device="tablet", outbox="2"))
        answers = fresh.group(*(fresh.batch(make_sample(n), identity=who) for who, n in deliveries))
        acknowledged = {
            (who, verdict.ordinal)
            for (who, _), answer in zip(deliveries, answers, strict=True)
            if isinstance(answer, Ack)
            for verdict in answer.verdicts
        }
        assert acknowledged == set(deliveries)
        assert store.counts().train_samples == len(acknowledged)
