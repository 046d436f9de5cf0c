"""A server that is hostile, broken, or somebody else. A device must not lose samples, spin, or show whatever it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import pytest

from hostile.wire.attacks import on_device
from hostile.wire.peers import headed, header, hello
from sf_contract.errors import MalformedMessage, RefusedByServer
from sf_contract.frames import decode, encode
from sf_contract.limits import MIB
from sf_contract.messages import (
    Ack,
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
    Welcome,
)
from sf_edge.actions import Send
from sf_edge.outbox.records import SetAside
from sf_edge.session import ANSWER_TIMEOUT_S, MOST_IN_FLIGHT_BYTES, SHORTEST_HELLO_INTERVAL_S, Session, State
from sf_edge.status import set_aside_lines

TERMINAL: Final = "\x1b[2J\x1b]0;owned\x07\nall is well\u202e"
WELCOME: Final = Welcome(software="x", credit_bytes=1000)
TOTALS: Final = Finished(samples=1, rejected=0, skipped_rows=0)
TICKS_PER_S: Final = 5
"""A session that wants to be called more often than this is spinning."""

Server = Callable[[AnyMessage, float], Iterable[AnyMessage]]


@dataclass(frozen=True)
class Offer:
    """A sample that waits."""

    ordinal: int
    nbytes: int


@dataclass
class Story:
    """What a session did while time passed."""

    session: Session
    now_s: float = 0.0
    ticks: int = 0
    said: list[AnyMessage] = field(default_factory=list)

    def run(self, until_s: float, server: Server) -> None:
        """Call the session whenever it wants to be, with a server that answers at once."""
        started_s = self.now_s
        while self.session.next_tick_s() <= until_s and self.session.state is not State.FINISHED:
            due_s = self.session.next_tick_s()
            self.now_s = max(self.now_s, due_s)
            self.ticks += 1
            assert self.ticks <= 10 + TICKS_PER_S * (self.now_s - started_s), "it spins"
            self.perform(self.session.tick(self.now_s, waiting_samples=3), server)
        self.now_s = until_s

    def perform(self, actions: Iterable[object], server: Server) -> None:
        """Say what the session says, and give it the answers as they come out of the decoder."""
        for action in actions:
            if isinstance(action, Send):
                self.said.append(action.message)
                for answer in server(action.message, self.now_s):
                    self.receive(answer, server)

    def receive(self, message: AnyMessage, server: Server) -> None:
        """A message from the server."""
        self.perform(self.session.receive(decode(encode(message)).message, self.now_s), server)

    @property
    def hellos(self) -> int:
        """How often it greeted."""
        return sum(isinstance(message, Hello) for message in self.said)


def silent(message: AnyMessage, now_s: float) -> Iterable[AnyMessage]:
    """A server that never answers."""
    return ()


def welcomed(session: Session, welcome: Welcome = WELCOME) -> Story:
    """A session that was let in."""
    story = Story(session)
    story.perform(session.tick(0.0, waiting_samples=3), silent)
    story.receive(welcome, silent)
    assert session.state is State.WELCOMED
    return story


@on_device
def a_credit_without_end(session: Session) -> None:
    """What is in flight lies in the device's memory. A server that grants a terabyte would fill a small board's."""
    welcomed(session, Welcome(software="x", credit_bytes=1 << 40))
    for ordinal in range(0, 1_000):
        session.choose([Offer(ordinal, 1 * MIB)], 0.0)
    assert session.in_flight_bytes <= MOST_IN_FLIGHT_BYTES
    session.receive(Ack(verdicts=(Stored(0),), credit_bytes=1 << 40), 0.0)
    for ordinal in range(1_000, 2_000):
        session.choose([Offer(ordinal, 1 * MIB)], 0.0)
    assert session.in_flight_bytes <= MOST_IN_FLIGHT_BYTES


@on_device
def a_credit_that_is_no_number(session: Session) -> None:
    """Beyond 2^40, below 0, or a fraction: no message of this protocol."""
    for credit in (2**40 + 1, -1, 0.5, 1e300, None, "1"):
        with pytest.raises(MalformedMessage):
            decode(headed(header({"type": "welcome", "software": "x", "credit_bytes": credit})))
    assert session.state is State.OFFLINE


@on_device
def the_same_ack_again_and_again(session: Session) -> None:
    """Every repeat would free credit that is not free, if a verdict counted more than once."""
    story = welcomed(session)
    assert session.choose([Offer(0, 600), Offer(1, 400)], 0.0) == (0, 1)
    for _ in range(5):
        story.receive(Ack(verdicts=(Stored(0), Stored(0)), credit_bytes=1000), silent)
        assert session.in_flight_bytes == 400
    assert session.choose([Offer(2, 700)], 0.0) == ()


@on_device
def acks_for_what_is_not_in_flight(session: Session) -> None:
    """They must not make the bytes in flight negative, which would be credit."""
    story = welcomed(session)
    story.receive(Ack(verdicts=tuple(map(Stored, range(100, 200))), credit_bytes=1000), silent)
    assert session.in_flight_bytes == 0
    assert session.choose([Offer(0, 1001), Offer(1, 1)], 0.0) == (0,)


@on_device
def a_refusal_for_every_greeting_without_a_delay(session: Session) -> None:
    """ "Try again in 0 seconds", for ever: a device that obeys would use up its battery and flood the network."""
    for code in (RefusalCode.HELLO_FIRST, RefusalCode.STORE_FULL, RefusalCode.MALFORMED, RefusalCode.DEVICE_NAME):
        _storm(session, lambda message, now_s, code=code: [Refusal(code=code, detail="again", retry_after_s=0)] * 3)


@on_device
def welcome_and_refusal_by_turns(session: Session) -> None:
    """Each welcome resets the backoff, each refusal asks for a new greeting."""
    refusal = Refusal(code=RefusalCode.HELLO_FIRST, detail="who?", retry_after_s=0)
    _storm(session, lambda message, now_s: [WELCOME, refusal])


def _storm(session: Session, server: Server) -> None:
    story = Story(session, now_s=max(0.0, session._hello_s))
    before, end_s = story.hellos, story.now_s + 60
    story.run(end_s, server)
    assert 2 <= story.hellos - before <= 60 / SHORTEST_HELLO_INTERVAL_S + 2
    wait = session.wait()
    assert wait is None or wait.what


@on_device
def pongs_and_nothing_else(session: Session) -> None:
    """A server that only says it is there keeps a device waiting: it greets anew, and says since when it waits for what."""
    story = Story(session)
    story.run(10 * ANSWER_TIMEOUT_S, lambda message, now_s: [Pong()] * 100)
    assert story.hellos == 11
    wait = session.wait()
    assert wait is not None
    assert wait.since_s == 0.0
    assert "to answer" in wait.what


@on_device
def acks_without_end_for_other_samples(session: Session) -> None:
    """Acks that never name what is in flight look like progress. They cost the server more than the device; what is in flight
    stays there, and is sent again after the next greeting."""
    story = welcomed(session)
    session.choose([Offer(0, 100)], 0.0)
    for number in range(1_000):
        story.receive(Ack(verdicts=(Stored(10**6 + number),), credit_bytes=1000), silent)
    assert session.in_flight_bytes == 100


@on_device
def an_end_that_nobody_asked_for(session: Session) -> None:
    """`finish-noted` before the device has finished would make it forget to send the rest."""
    story = welcomed(session)
    story.receive(FinishNoted(), silent)
    assert session.state is State.WELCOMED
    session.choose([Offer(0, 10)], 0.0)
    story.receive(FinishNoted(), silent)
    assert session.finish(TOTALS, 0.0) == []
    assert session.state is State.WELCOMED


@on_device
def training_is_over_for_a_device_that_still_holds_samples(session: Session) -> None:
    """It must not look like success: samples that were not taken are an error, and stay in the outbox."""
    story = welcomed(session)
    session.choose([Offer(0, 10)], 0.0)
    with pytest.raises(RefusedByServer, match="closed"):
        story.receive(Refusal(code=RefusalCode.CLOSED, detail="bye"), silent)


@on_device
def a_refusal_that_a_terminal_obeys(session: Session) -> None:
    """What a server says is shown to a person, as the end of a run or as the reason of a wait: written out, on one line."""
    story = welcomed(session)
    story.receive(Refusal(code=RefusalCode.STORE_FULL, detail=TERMINAL, retry_after_s=60), silent)
    wait = session.wait()
    assert wait is not None
    assert wait.what.isprintable()
    with pytest.raises(RefusedByServer) as refused:
        story.receive(Refusal(code=RefusalCode.BUNDLE, detail=TERMINAL), silent)
    assert refused.value.one_line().isprintable()


@on_device
def a_rejection_that_a_terminal_obeys(session: Session) -> None:
    """The reason why a sample was set aside is kept for weeks, and shown by `sf-edge status`."""
    rejected = Rejected(ordinal=0, code=RejectionCode.LABEL, detail=TERMINAL)
    item = SetAside(ordinal=0, line=1, code=rejected.code, detail=rejected.detail, source="rows.jsonl")
    assert all(line.isprintable() for line in set_aside_lines([item]))
    assert session.state is State.OFFLINE


@on_device
def a_pause_of_a_day(session: Session) -> None:
    """A server may ask for a day and no more. The device waits, says so, and asks again then."""
    story = welcomed(session)
    story.receive(Refusal(code=RefusalCode.STORE_FULL, detail="full", retry_after_s=86_400), silent)
    before = story.hellos
    story.run(86_399, silent)
    assert story.hellos == before
    wait = session.wait()
    assert wait is not None
    assert "full" in wait.what
    story.run(86_401, silent)
    assert story.hellos == before + 1
    for delay in (86_401, -1, 1e300, "soon"):
        with pytest.raises(MalformedMessage):
            decode(headed(header({"type": "refusal", "code": "closed", "detail": "", "retry_after_s": delay})))


@on_device
def words_of_a_device(session: Session) -> None:
    """A server that sends what only devices send changes nothing."""
    story = welcomed(session)
    for message in (hello("server"), TOTALS, Ping(), Ping(activity="paused")):
        story.receive(message, silent)
        assert (session.state, session.in_flight_bytes) == (State.WELCOMED, 0)
    assert story.said == [story.said[0]]


@on_device
def more_verdicts_than_a_message_may_hold(session: Session) -> None:
    """None, or more than 256, or verdicts of a kind that does not exist."""
    stored = {"verdict": "stored", "ordinal": 0}
    for verdicts in (
        [],
        [stored] * 257,
        [{"verdict": "lost", "ordinal": 0}],
        [{**stored, "ordinal": 2**53}],
        [{}],
        None,
    ):
        with pytest.raises(MalformedMessage):
            decode(headed(header({"type": "ack", "credit_bytes": 1, "verdicts": verdicts})))
    assert session.state is State.OFFLINE


@on_device
def silence_after_the_welcome(session: Session) -> None:
    """A half-open connection: the device finds out by itself, makes a new one, and never spins."""
    story = welcomed(session)
    session.choose([Offer(0, 10)], 0.0)
    story.run(3_600, silent)
    assert session.state in (State.OFFLINE, State.GREETING)
    assert session.sent_through == 0
    wait = session.wait()
    assert wait is not None
    assert wait.since_s <= 30
