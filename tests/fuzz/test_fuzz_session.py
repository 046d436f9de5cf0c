"""10,000 sequences of random events through the device's session: its promises hold at every step, and it always recovers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sf_contract.errors import NotAuthorised, RefusedByServer, ServerUnreachable, WrongServerKey
from sf_contract.messages import (
    PROTOCOL_VERSION,
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
from sf_edge.actions import Action, Connect, Disconnect, Send, Settle
from sf_edge.link.events import LinkEvent
from sf_edge.session import MOST_IN_FLIGHT_BYTES, Session, State, Terms

SEQUENCES: Final = 10_000
EVENTS: Final = 30
SEED: Final = 20261124
NAMED_ERRORS: Final = (RefusedByServer, ServerUnreachable, NotAuthorised, WrongServerKey)
CREDITS: Final = (0, 1, 100, 1000, 10**6, 1 << 40)
TOTALS: Final = Finished(samples=1, rejected=0, skipped_rows=0)
HELLO: Final = Hello(
    protocol=PROTOCOL_VERSION, software="test", device="pi", outbox="0" * 32, bundle_id="1" * 64, self_test_error=0.01,
    waiting_samples=0,
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    ordinal: int
    nbytes: int


@dataclass
class Device:
    """A session with its outbox, and everything it promised."""

    chance: random.Random
    now_s: float = 0.0
    credit_bytes: int = 0
    waiting: dict[int, int] = field(default_factory=dict)
    in_flight: dict[int, int] = field(default_factory=dict)
    connects: int = 0

    def __post_init__(self) -> None:
        sizes = [self.chance.choice((1, 50, 500, 5000, 2**20)) for _ in range(self.chance.randint(1, 40))]
        self.waiting = dict(enumerate(sizes))
        give_up_after_s = self.chance.choice((0, 0, 20.0))
        terms = Terms(hello=HELLO, address="tcp://server:1", give_up_after_s=give_up_after_s)
        self.session = Session(terms, random=self.chance.random, now_s=0.0)

    def perform(self, actions: list[Action]) -> list[AnyMessage]:
        """Note what the session wants; what it says."""
        said: list[AnyMessage] = []
        for action in actions:
            match action:
                case Connect():
                    self.connects += 1
                case Disconnect():
                    self.in_flight.clear()
                case Send(message):
                    said.append(message)
                    if isinstance(message, Hello):
                        assert message.waiting_samples == len(self.waiting)
                        self.in_flight.clear()
                    if isinstance(message, Finished):
                        assert not self.in_flight, "it says the end with samples in flight"
                case Settle(verdicts):
                    for verdict in verdicts:
                        self.waiting.pop(verdict.ordinal, None)
                        self.in_flight.pop(verdict.ordinal, None)
        return said

    def tick(self) -> list[AnyMessage]:
        """Call the session as the loop does: until it does not want to be called again now."""
        said: list[AnyMessage] = []
        for _ in range(6):
            said += self.perform(self.session.tick(self.now_s, waiting_samples=len(self.waiting)))
            if self.session.next_tick_s() > self.now_s:
                return said
        raise AssertionError("it wants to be called without end")

    def receive(self, message: AnyMessage) -> None:
        """A message from the server."""
        state = self.session.state
        self.perform(self.session.receive(message, self.now_s))
        if isinstance(message, Welcome | Ack):
            self.credit_bytes = min(message.credit_bytes, MOST_IN_FLIGHT_BYTES)
        if isinstance(message, Welcome) and state in (State.GREETING, State.PAUSED):
            assert self.session.sent_through == -1
            self.in_flight.clear()
        if self.session.state is State.PAUSED:
            self.in_flight.clear()

    def send(self) -> None:
        """Send what the session lets go."""
        after = self.session.sent_through
        offers = [Sample(o, n) for o, n in sorted(self.waiting.items()) if o > after]
        chosen = self.session.choose(offers, self.now_s)
        assert not chosen or self.session.state is State.WELCOMED, "it sends before the welcome"
        self.in_flight |= {ordinal: self.waiting[ordinal] for ordinal in chosen}
        if chosen:
            is_alone = len(self.in_flight) == 1 and self.credit_bytes > 0
            assert is_alone or sum(self.in_flight.values()) <= self.credit_bytes, "more in flight than granted"

    def check(self) -> None:
        """What is always true."""
        session = self.session
        assert session.in_flight_bytes == sum(self.in_flight.values())
        if session.state is State.WELCOMED:
            forgotten = [o for o in self.waiting if o <= session.sent_through and o not in self.in_flight]
            assert not forgotten, "neither in flight nor to be sent again"
        wait = session.wait()
        if session.state not in (State.WELCOMED, State.FINISHED) or (
            session.state is State.WELCOMED and self.in_flight
        ):
            assert wait is not None, "a silent wait"
        if wait is not None:
            assert wait.what.isprintable()
            assert wait.since_s <= self.now_s


def a_message(device: Device) -> AnyMessage:
    """Anything a server could say, likely things more often."""
    chance = device.chance
    credit_bytes = chance.choice(CREDITS)
    likely: list[Callable[[], AnyMessage]] = [
        lambda: Welcome(software="x", credit_bytes=credit_bytes),
        lambda: Ack(verdicts=_verdicts(device), credit_bytes=credit_bytes),
        Pong,
        lambda: Refusal(code=RefusalCode.HELLO_FIRST, detail="who?", retry_after_s=0),
    ]
    rare: list[Callable[[], AnyMessage]] = [
        FinishNoted,
        lambda: Refusal(
            code=chance.choice(tuple(RefusalCode)), detail="\x1b[2J", retry_after_s=chance.choice((0, 1, 30, 86_400))
        ),
        lambda: Refusal(code=chance.choice(tuple(RefusalCode)), detail="never"),
        Ping,
        lambda: HELLO,
        lambda: TOTALS,
        lambda: ActivationBatch(bundle_id="1" * 64, samples=()),
    ]
    return chance.choice(rare if chance.random() < 0.15 else likely)()


def _verdicts(device: Device) -> tuple[Verdict, ...]:
    chance = device.chance
    known = [*device.in_flight, *device.waiting, 10**6]
    ordinals = chance.choices(known, k=chance.randint(1, 8))
    kinds: list[Callable[[int], Verdict]] = [Stored, AlreadyStored, lambda o: Rejected(o, RejectionCode.LABEL, "no")]
    return tuple(chance.choice(kinds)(ordinal) for ordinal in ordinals)


def an_event(device: Device) -> None:
    """Something happens."""
    chance, session = device.chance, device.session
    match chance.randrange(10):
        case 0 | 1:
            device.now_s += chance.choice((0.0, 0.01, 1.0, 6.0, 31.0, 1000.0))
            device.tick()
        case 2 | 3:
            due_s = session.next_tick_s()
            device.now_s = max(device.now_s, min(due_s, device.now_s + 100_000))
            device.tick()
        case 4 | 5 | 6:
            device.receive(a_message(device))
        case 7 | 8:
            device.send()
        case _:
            if chance.random() < 0.5:
                event = chance.choice(tuple(LinkEvent))
                device.perform(session.link_changed(event, device.now_s, waiting_samples=len(device.waiting)))
            elif not device.waiting:
                device.perform(session.finish(TOTALS, device.now_s))


def live_through(chance: random.Random) -> str:
    """One sequence: random events, then a server that is good; how it ended."""
    device = Device(chance)
    try:
        for _ in range(EVENTS):
            an_event(device)
            device.check()
            if device.session.state is State.FINISHED:
                return "finished early"
        _good_server(device)
    except NAMED_ERRORS as problem:
        return type(problem).__name__
    return "finished"


def _good_server(device: Device) -> None:
    """From now on every message is answered at once and well: everything has to arrive, soon."""
    answers: list[AnyMessage] = []
    steps = 0
    while device.session.state is not State.FINISHED:
        steps += 1
        assert steps < 1_000, f"it does not recover from {device.session.state}"
        for answer in answers:
            device.receive(answer)
        answers = []
        for said in device.tick():
            answers += _answered(said)
        device.send()
        if device.in_flight:
            verdicts = tuple(map(Stored, list(device.in_flight)[:256]))
            answers.append(Ack(verdicts=verdicts, credit_bytes=10**6))
        if not device.waiting:
            for said in device.perform(device.session.finish(TOTALS, device.now_s)):
                answers += _answered(said)
        device.check()
        if not answers and device.session.state is not State.FINISHED:
            device.now_s = max(device.now_s, device.session.next_tick_s())
    assert not device.waiting


def _answered(said: AnyMessage) -> list[AnyMessage]:
    match said:
        case Hello():
            return [Welcome(software="x", credit_bytes=10**6)]
        case Ping():
            return [Pong()]
        case Finished():
            return [FinishNoted()]
    return []


@pytest.mark.slow
def test_random_events_break_no_promise_and_are_recovered_from() -> None:
    endings: Counter[str] = Counter()
    for number in range(SEQUENCES):
        endings[live_through(random.Random(SEED + number))] += 1
    assert endings.total() == SEQUENCES
    assert endings["finished"] > SEQUENCES / 2, endings
    assert set(endings) <= {"finished", "finished early", *(kind.__name__ for kind in NAMED_ERRORS)}


@settings(max_examples=300, deadline=None)
@given(randomness=st.randoms(use_true_random=False))
def test_the_same_with_a_search_for_the_shortest_example(randomness: random.Random) -> None:
    live_through(randomness)


def test_a_silent_server_is_called_again_and_again_and_never_in_a_hurry() -> None:
    for number in range(200):
        device = Device(random.Random(SEED + number))
        try:
            for _ in range(10):
                an_event(device)
            started_s, connects, ticks = device.now_s, device.connects, 0
            while device.session.next_tick_s() < started_s + 3_600:
                device.now_s = max(device.now_s, device.session.next_tick_s())
                device.tick()
                device.check()
                ticks += 1
        except NAMED_ERRORS:
            continue
        if device.session.state is not State.FINISHED:
            assert ticks < 3_600
            assert device.connects - connects > 10 or device.session.next_tick_s() > started_s + 3_600
