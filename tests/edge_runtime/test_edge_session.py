"""The session state machine: credit, resending, refusals, heartbeat, end."""

from __future__ import annotations

import random as random_module
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sf_contract.errors import RefusedByServer, ServerUnreachable
from sf_contract.messages import (
    PROTOCOL_VERSION,
    Ack,
    AlreadyStored,
    AnyMessage,
    Finished,
    FinishNoted,
    Hello,
    Ping,
    Pong,
    Refusal,
    RefusalCode,
    Stored,
    Verdict,
    Welcome,
)
from sf_edge.actions import Action, Connect, Disconnect, Send, Settle
from sf_edge.session import (
    ANSWER_TIMEOUT_S,
    BATCH_BYTES,
    BATCH_SAMPLES,
    PING_AFTER_S,
    Session,
    State,
    Terms,
    Timing,
)

HELLO = Hello(
    protocol=PROTOCOL_VERSION, software="test", device="pi", outbox="0" * 32, bundle_id="1" * 64,
    self_test_error=0.01, waiting_samples=0,
)  # fmt: skip
TOTALS = Finished(samples=1, rejected=0, skipped_rows=0)


@dataclass(frozen=True)
class Sample:
    ordinal: int
    nbytes: int


def make_session(*, give_up_after_s: float = 60.0) -> Session:
    terms = Terms(hello=HELLO, address="tcp://server:1", give_up_after_s=give_up_after_s)
    return Session(terms, random=lambda: 1.0, now_s=0.0)


def welcomed_session(credit_bytes: int = 1000) -> Session:
    session = make_session()
    session.tick(0.0, waiting_samples=0)
    session.receive(Welcome(software="test", credit_bytes=credit_bytes), 0.0)
    return session


def samples(*sizes: int) -> list[Sample]:
    return [Sample(ordinal, nbytes) for ordinal, nbytes in enumerate(sizes)]


def stored(*ordinals: int, credit_bytes: int = 1000) -> Ack:
    return Ack(verdicts=tuple(map(Stored, ordinals)), credit_bytes=credit_bytes)


def pings(actions: list[Action]) -> list[str | None]:
    """What the pings among these actions say."""
    return [
        action.message.activity for action in actions if isinstance(action, Send) and isinstance(action.message, Ping)
    ]


def test_the_server_hears_at_once_what_holds_the_device_back_and_that_nothing_does_any_more() -> None:
    session = welcomed_session()
    assert pings(session.tick(1.0, waiting_samples=0)) == []
    assert pings(session.tick(1.1, waiting_samples=0, activity="paused")) == ["paused"]
    assert pings(session.tick(1.2, waiting_samples=0, activity="paused")) == []
    session.receive(Pong(), 4.0)
    assert pings(session.tick(6.5, waiting_samples=0)) == [None]


def test_an_activity_that_changes_all_the_time_is_told_no_more_often_than_a_ping() -> None:
    session = welcomed_session()
    told = []
    for tenth in range(600):
        session.receive(Pong(), tenth / 10)
        told += pings(session.tick(tenth / 10, waiting_samples=0, activity=f"paused: {tenth}"))
        assert session.next_tick_s() > tenth / 10
    assert len(told) == 60 / PING_AFTER_S


def test_every_heartbeat_repeats_the_activity_and_a_new_connection_hears_it_again() -> None:
    session = welcomed_session()
    session.tick(0.0, waiting_samples=0, activity="paused")
    assert pings(session.tick(PING_AFTER_S, waiting_samples=0, activity="paused")) == ["paused"]
    session.receive(Refusal(code=RefusalCode.HELLO_FIRST, detail="who?"), 6.0)
    session.tick(7.0, waiting_samples=0, activity="paused")
    session.receive(Welcome(software="test", credit_bytes=1000), 7.0)
    assert pings(session.tick(7.1, waiting_samples=0, activity="paused")) == ["paused"]


def test_telling_what_holds_the_device_back_does_not_make_the_session_more_patient() -> None:
    session = welcomed_session()
    now_s = 0.0
    while session.state is State.WELCOMED and now_s < 60:
        now_s += 1.0
        session.tick(now_s, waiting_samples=0, activity=f"paused: {now_s}")
    assert now_s == 4 * PING_AFTER_S


def test_it_says_hello_first_with_what_is_waiting() -> None:
    connect, hello = make_session().tick(0.0, waiting_samples=7)
    assert connect == Connect()
    assert isinstance(hello, Send)
    assert isinstance(hello.message, Hello)
    assert hello.message.waiting_samples == 7


def test_nothing_is_sent_before_the_welcome() -> None:
    session = make_session()
    session.tick(0.0, waiting_samples=1)
    assert session.choose(samples(10), 0.0) == ()


def test_never_more_bytes_than_the_credit_are_in_flight() -> None:
    session = welcomed_session(credit_bytes=250)
    assert session.choose(samples(100, 100, 100), 0.0) == (0, 1)
    assert session.choose([Sample(2, 100)], 0.0) == ()
    session.receive(stored(0, credit_bytes=250), 1.0)
    assert session.choose([Sample(2, 100)], 1.0) == (2,)
    assert session.in_flight_bytes == 200


def test_a_smaller_credit_in_an_ack_counts_at_once() -> None:
    session = welcomed_session(credit_bytes=250)
    session.choose(samples(100, 100), 0.0)
    session.receive(stored(0, credit_bytes=150), 1.0)
    assert session.choose([Sample(2, 100)], 1.0) == ()


def test_a_sample_larger_than_the_credit_goes_alone() -> None:
    session = welcomed_session(credit_bytes=50)
    assert session.choose(samples(80, 10), 0.0) == (0,)
    session.receive(stored(0, credit_bytes=50), 0.0)
    assert session.choose([Sample(1, 10), Sample(2, 80)], 0.0) == (1,)


def test_without_credit_nothing_goes_and_hello_is_said_again_after_a_while() -> None:
    session = welcomed_session(credit_bytes=0)
    assert session.choose(samples(10), 0.0) == ()
    session.receive(Pong(), ANSWER_TIMEOUT_S - 1)
    assert sent(session.tick(ANSWER_TIMEOUT_S, waiting_samples=1)) == [Hello]


def test_a_batch_is_bounded_in_samples_and_bytes() -> None:
    session = welcomed_session(credit_bytes=1 << 30)
    assert len(session.choose(samples(*[1] * 40), 0.0)) == BATCH_SAMPLES
    session = welcomed_session(credit_bytes=1 << 30)
    half = BATCH_BYTES // 2
    assert session.choose(samples(half, half, 1), 0.0) == (0, 1)
    session = welcomed_session(credit_bytes=1 << 30)
    assert session.choose(samples(3 * BATCH_BYTES, 1), 0.0) == (0,)


def test_after_a_new_welcome_everything_without_verdict_is_sent_again() -> None:
    session = welcomed_session()
    session.choose(samples(10, 10), 0.0)
    session.receive(Refusal(code=RefusalCode.HELLO_FIRST, detail=""), 2.0)
    assert sent(session.tick(2.0, waiting_samples=2)) == [Hello]
    session.receive(Welcome(software="test", credit_bytes=1000), 2.1)
    assert session.sent_through == -1
    assert session.in_flight_bytes == 0
    assert session.choose(samples(10, 10), 2.2) == (0, 1)


def test_many_hello_first_refusals_lead_to_one_hello() -> None:
    session = welcomed_session()
    session.choose(samples(10), 0.0)
    hellos = 0
    for now_s in (2.0, 2.1, 2.2):
        session.receive(Refusal(code=RefusalCode.HELLO_FIRST, detail=""), now_s)
        hellos += sent(session.tick(now_s, waiting_samples=1)).count(Hello)
    assert hellos == 1


def test_a_lost_hello_is_said_again_when_the_server_answers_a_ping_with_hello_first() -> None:
    session = welcomed_session()
    session.receive(Refusal(code=RefusalCode.HELLO_FIRST, detail=""), 2.0)
    assert Hello in sent(session.tick(2.0, waiting_samples=1))  # and the server dies before it reads it
    session.receive(Refusal(code=RefusalCode.HELLO_FIRST, detail=""), 7.5)
    assert Hello in sent(session.tick(7.5, waiting_samples=1))


def test_a_server_that_always_says_hello_first_is_not_flooded() -> None:
    session = welcomed_session()
    hellos = 0
    for step in range(100):
        now_s = step / 10
        session.receive(Refusal(code=RefusalCode.HELLO_FIRST, detail=""), now_s)
        hellos += sent(session.tick(now_s, waiting_samples=1)).count(Hello)
        session.receive(Welcome(software="test", credit_bytes=1000), now_s)
    assert hellos <= 10


def test_silence_about_a_sample_leads_to_hello_and_resending() -> None:
    session = welcomed_session()
    session.choose(samples(10), 0.0)
    for now_s in (4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0):
        assert session.tick(now_s, waiting_samples=1) == []
        session.receive(Pong(), now_s)
    assert session.next_tick_s() == ANSWER_TIMEOUT_S
    assert sent(session.tick(ANSWER_TIMEOUT_S, waiting_samples=1)) == [Hello]
    session.receive(Welcome(software="test", credit_bytes=1000), ANSWER_TIMEOUT_S)
    assert session.choose(samples(10), ANSWER_TIMEOUT_S) == (0,)


def test_a_refusal_with_a_delay_pauses_then_says_hello() -> None:
    session = welcomed_session()
    session.choose(samples(10), 0.0)
    session.receive(Refusal(code=RefusalCode.STORE_FULL, detail="disk full", retry_after_s=20), 1.0)
    assert session.state is State.PAUSED
    assert session.choose([Sample(1, 10)], 2.0) == ()
    assert session.next_tick_s() == 21.0
    assert session.tick(20.9, waiting_samples=1) == []
    assert sent(session.tick(21.0, waiting_samples=1)) == [Hello]


def test_a_refusal_without_a_delay_ends_the_run() -> None:
    session = welcomed_session()
    with pytest.raises(RefusedByServer, match="another bundle"):
        session.receive(Refusal(code=RefusalCode.BUNDLE, detail="another bundle"), 1.0)


def test_three_unanswered_pings_mean_a_new_socket_after_a_growing_delay() -> None:
    session = welcomed_session()
    now_s, delays = 0.0, []
    for _ in range(9):
        pings = 0
        while session.state is not State.OFFLINE:
            now_s = session.next_tick_s()
            pings += sent(session.tick(now_s, waiting_samples=0)).count(Ping)
        assert pings == 3
        delays.append(session.next_tick_s() - now_s)
        now_s = session.next_tick_s()
        assert session.tick(now_s, waiting_samples=0)[0] == Connect()
    assert delays == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])


def test_the_backoff_starts_small_again_after_a_welcome_and_has_jitter() -> None:
    terms = Terms(hello=HELLO, address="tcp://server:1", give_up_after_s=0)
    session = Session(terms, random=lambda: 0.0, now_s=0.0)
    session.tick(0.0, waiting_samples=0)
    session.receive(Welcome(software="test", credit_bytes=1), 0.0)
    assert lose(session, 0.0) == pytest.approx(0.25)


def test_an_impatient_session_asks_sooner_and_gives_up_a_connection_sooner() -> None:
    timing = Timing(ping_after_s=0.5, answer_timeout_s=2.0, first_backoff_s=0.1, longest_backoff_s=0.2)
    terms = Terms(hello=HELLO, address="tcp://server:1", give_up_after_s=0, timing=timing)
    session = Session(terms, random=lambda: 1.0, now_s=0.0)
    session.tick(0.0, waiting_samples=0)
    assert session.next_tick_s() == 0.5
    session.receive(Pong(), 1.9)
    assert sent(session.tick(2.0, waiting_samples=0)) == [Hello]
    delays = []
    for _ in range(3):
        delays.append(lose(session, 2.0))
        session.tick(session.next_tick_s(), waiting_samples=0)
    assert delays == pytest.approx([0.1, 0.2, 0.2])


def test_any_message_counts_as_a_sign_of_life() -> None:
    session = welcomed_session()
    for now_s in (4.0, 8.0, 12.0, 16.0):
        assert session.tick(now_s, waiting_samples=0) == []
        session.receive(Pong(), now_s)
    assert session.next_tick_s() == 16.0 + PING_AFTER_S


def test_a_long_computation_between_two_ticks_is_not_a_dead_server() -> None:
    session = welcomed_session()
    assert sent(session.tick(100.0, waiting_samples=0)) == [Ping]
    assert session.state is State.WELCOMED


def test_a_server_that_never_answered_is_given_up() -> None:
    session = make_session(give_up_after_s=60)
    assert session.next_tick_s() <= 60
    run_until(session, 59.9)
    with pytest.raises(ServerUnreachable, match=r"tcp://server:1 for 60 s; 5 samples wait"):
        session.tick(60.0, waiting_samples=5)


def test_zero_patience_means_never_giving_up() -> None:
    run_until(make_session(give_up_after_s=0), 10_000)


def test_a_server_that_was_seen_once_is_never_given_up() -> None:
    session = welcomed_session()
    run_until(session, 10_000)
    assert session.state in (State.OFFLINE, State.GREETING)


def test_the_end_is_told_only_with_nothing_in_flight_and_confirmed() -> None:
    session = welcomed_session()
    session.choose(samples(10), 0.0)
    assert session.finish(TOTALS, 0.0) == []
    session.receive(stored(0), 1.0)
    assert session.finish(TOTALS, 1.0) == [Send(TOTALS)]
    assert session.finish(TOTALS, 1.0) == []
    session.receive(FinishNoted(), 2.0)
    assert session.state is State.FINISHED
    assert session.tick(100.0, waiting_samples=0) == []


def test_an_unconfirmed_end_leads_to_hello_again() -> None:
    session = welcomed_session()
    session.finish(TOTALS, 0.0)
    session.receive(Pong(), ANSWER_TIMEOUT_S - 1)
    assert sent(session.tick(ANSWER_TIMEOUT_S, waiting_samples=0)) == [Hello]


def test_a_server_that_closes_before_it_notes_the_end_took_everything() -> None:
    session = welcomed_session()
    session.finish(TOTALS, 0.0)
    session.receive(Refusal(code=RefusalCode.CLOSED, detail="training is complete"), 1.0)
    assert session.state is State.FINISHED


def test_messages_that_make_no_sense_are_ignored() -> None:
    session = welcomed_session()
    for message in (HELLO, TOTALS, Ping(), FinishNoted()):
        assert session.receive(message, 1.0) == []
    assert session.state is State.WELCOMED


def test_every_wait_says_what_for_and_since_when() -> None:
    session = make_session()
    session.tick(0.0, waiting_samples=1)
    wait = session.wait()
    assert wait is not None
    assert wait.since_s == 0.0
    assert "tcp://server:1 to answer" in wait.what
    session.receive(Welcome(software="test", credit_bytes=100), 3.0)
    assert session.wait() is None
    session.choose(samples(10), 4.0)
    wait = session.wait()
    assert wait is not None
    assert (wait.since_s, "acknowledge 1 samples" in wait.what) == (4.0, True)


def test_the_wait_for_a_silent_server_is_counted_from_its_beginning() -> None:
    session = welcomed_session()
    lost_at_s = 20.0
    run_until(session, 200.0)
    wait = session.wait()
    assert wait is not None
    assert wait.since_s == lost_at_s


def sent(actions: list[Action]) -> list[type[AnyMessage]]:
    return [type(action.message) for action in actions if isinstance(action, Send)]


def lose(session: Session, now_s: float) -> float:
    """Let the pings go unanswered; the delay before the next connection."""
    while session.state is not State.OFFLINE:
        now_s = session.next_tick_s()
        session.tick(now_s, waiting_samples=0)
    return session.next_tick_s() - now_s


def run_until(session: Session, end_s: float) -> None:
    """Tick whenever due, with a server that never answers."""
    while session.next_tick_s() <= end_s:
        session.tick(session.next_tick_s(), waiting_samples=0)


@dataclass
class LossyWorld:
    """A device with samples, a server with a store, and a link that loses, repeats and cuts; time is simulated."""

    random: random_module.Random
    loss: float
    session: Session = field(default_factory=lambda: make_session(give_up_after_s=0))
    now_s: float = 0.0
    credit_bytes: int = 100
    waiting: dict[int, int] = field(default_factory=dict)
    settled: list[int] = field(default_factory=list)
    store: set[int] = field(default_factory=set)
    to_server: list[AnyMessage | tuple[int, ...]] = field(default_factory=list)
    to_device: list[AnyMessage] = field(default_factory=list)
    is_known: bool = False

    def step(self) -> None:
        self.now_s += self.random.uniform(0, 2)
        self._serve()
        arrived, self.to_device = self.to_device, []
        for message in arrived:
            self._perform(self.session.receive(message, self.now_s))
        self._perform(self.session.tick(self.now_s, waiting_samples=len(self.waiting)))
        offers = [Sample(o, n) for o, n in sorted(self.waiting.items()) if o > self.session.sent_through]
        if batch := self.session.choose(offers, self.now_s):
            self._to_server(batch)
        self._check_credit()
        if not self.waiting:
            self._perform(self.session.finish(TOTALS, self.now_s))
        if self.random.random() < self.loss / 4:
            self.is_known = False  # the server restarted
            self.to_server.clear()

    def _check_credit(self) -> None:
        in_flight = self.session.in_flight_bytes
        assert in_flight >= 0
        largest = max(self.waiting.values(), default=0)
        assert in_flight <= max(self.credit_bytes, largest)

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Disconnect() | Connect():
                    self.to_server.clear()
                    self.to_device.clear()
                    self.is_known = False
                case Send(message):
                    self._to_server(message)
                case Settle(verdicts):
                    self._settle(verdicts)

    def _settle(self, verdicts: tuple[Verdict, ...]) -> None:
        for verdict in verdicts:
            assert verdict.ordinal in self.store, "forgotten before it was stored"
            if self.waiting.pop(verdict.ordinal, None) is not None:
                self.settled.append(verdict.ordinal)

    def _to_server(self, item: AnyMessage | tuple[int, ...]) -> None:
        if self.random.random() >= self.loss:
            self.to_server.append(item)

    def _to_device(self, message: AnyMessage) -> None:
        copies = 0 if self.random.random() < self.loss else 1 + (self.random.random() < self.loss)
        self.to_device.extend([message] * copies)

    def _serve(self) -> None:
        arrived, self.to_server = self.to_server, []
        for item in arrived:
            if isinstance(item, Hello):
                self.is_known = True
                self._to_device(Welcome(software="test", credit_bytes=self.credit_bytes))
            elif not self.is_known:
                self._to_device(Refusal(code=RefusalCode.HELLO_FIRST, detail=""))
            elif isinstance(item, tuple):
                verdicts = tuple(AlreadyStored(o) if o in self.store else Stored(o) for o in item)
                self.store.update(item)
                self._to_device(Ack(verdicts=verdicts, credit_bytes=self.credit_bytes))
            elif isinstance(item, Finished):
                self._to_device(FinishNoted())
            elif isinstance(item, Ping):
                self._to_device(Pong())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=40),
    seed=st.integers(0, 2**32),
    loss=st.floats(0, 0.6),
)
def test_over_a_lossy_link_every_sample_is_settled_exactly_once_within_the_credit(
    sizes: list[int], seed: int, loss: float
) -> None:
    world = LossyWorld(random=random_module.Random(seed), loss=loss, waiting=dict(enumerate(sizes)))
    for _ in range(200):
        world.step()
    world.loss = 0.0
    for _ in range(2000):
        if world.session.state is State.FINISHED:
            break
        world.step()
    assert world.session.state is State.FINISHED
    assert sorted(world.settled) == list(range(len(sizes)))
    assert world.store == set(range(len(sizes)))
