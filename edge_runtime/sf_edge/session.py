"""The device's side of the conversation with the server, as a pure state machine: no sockets, no files, no clock.

    OFFLINE --connect--> GREETING --Welcome--> WELCOMED --finish--> FINISHING --FinishNoted--> FINISHED
       ^                    |  ^                  |                     |
       |                    |  '--- PAUSED <--- Refusal with a delay ---+
       '--- three unanswered pings, from any of them

There is one way to recover from anything: say Hello again and send every sample that has no verdict. The server recognises
repeats, so this is always safe.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, assert_never

import msgspec

from sf_contract.errors import RefusedByServer, one_line
from sf_contract.limits import KIB, MIB
from sf_contract.messages import (
    Ack,
    ActivationBatch,
    AnyMessage,
    Approval,
    Finished,
    FinishNoted,
    Hello,
    Inquiry,
    Ping,
    Pong,
    PredictAnswer,
    PredictRequest,
    Refusal,
    RefusalCode,
    Welcome,
)
from sf_edge.actions import Action, Connect, Disconnect, Send, Settle, Wait
from sf_edge.link.events import ENDS_ATTEMPT, Endpoints, LinkEvent, describe, failure

PING_AFTER_S: Final = 5.0
PINGS_BEFORE_LOST: Final = 3
ANSWER_TIMEOUT_S: Final = 30.0
FIRST_BACKOFF_S: Final = 0.5
LONGEST_BACKOFF_S: Final = 30.0
LONGEST_KEY_BACKOFF_S: Final = 5.0
"""Between two attempts that fail at the handshake: an operator who has just added the key does not want to wait."""

SHORTEST_HELLO_INTERVAL_S: Final = 1.0
BATCH_SAMPLES: Final = 16
BATCH_BYTES: Final = 256 * KIB
MOST_IN_FLIGHT_BYTES: Final = 16 * MIB
"""However much the server grants: what is in flight lies in this device's memory."""


class State(enum.Enum):
    """Where the conversation stands."""

    OFFLINE = "offline"
    GREETING = "greeting"
    WELCOMED = "welcomed"
    PAUSED = "paused"
    FINISHING = "finishing"
    FINISHED = "finished"


class Sized(Protocol):
    """A sample that can be sent."""

    @property
    def ordinal(self) -> int:
        """Its number in the outbox."""

    @property
    def nbytes(self) -> int:
        """Payload bytes."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a session is, in seconds.

    Attributes:
        ping_after_s: silence after which the other side is asked whether it is there.
        answer_timeout_s: an answer that is owed for so long was lost.
        first_backoff_s, longest_backoff_s: pause before a lost connection is made again; it doubles each time.
        shortest_hello_interval_s: a Hello never follows another one sooner because of a refusal.
    """

    ping_after_s: float = PING_AFTER_S
    answer_timeout_s: float = ANSWER_TIMEOUT_S
    first_backoff_s: float = FIRST_BACKOFF_S
    longest_backoff_s: float = LONGEST_BACKOFF_S
    shortest_hello_interval_s: float = SHORTEST_HELLO_INTERVAL_S


USUAL_TIMING: Final = Timing()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a session is started with.

    `hello.waiting_samples` is replaced at every Hello; `give_up_after_s` 0 means never; `ends` is for messages, None means
    the address without keys.
    """

    hello: Hello
    address: str
    give_up_after_s: float
    timing: Timing = USUAL_TIMING
    ends: Endpoints | None = None


class Session:
    """One device's session with one server.

    Args:
        terms: who speaks, to whom.
        random: uniform numbers in [0, 1), for the jitter of the backoff.
        now_s: the time at the start; every method that takes `now_s` must get times that never decrease.

    Attributes:
        state: where the conversation stands.
        sent_through: samples up to this ordinal were sent since the last Welcome; -1 means none.
        in_flight_bytes: payload bytes sent since the last Welcome that have no verdict yet.
    """

    def __init__(self, terms: Terms, *, random: Callable[[], float], now_s: float) -> None:
        self._terms = terms
        self._timing = terms.timing
        self._ends = terms.ends or Endpoints(address=terms.address)
        self._random = random
        self._started_s = now_s
        self._since_s = now_s
        self._asked_s = now_s
        self._resume_at_s = now_s
        self._beat_s = now_s
        self._hello_s = now_s
        self._pings = 0
        self._backoff_s = self._timing.first_backoff_s
        self._credit_bytes = 0
        self._in_flight: dict[int, int] = {}
        self._pause_reason = ""
        self._activity: str | None = None
        self._told_activity: str | None = None
        self._told_s = float("-inf")
        self._was_heard = False
        self._trouble: LinkEvent | None = None
        self._was_cut = False
        self.state = State.OFFLINE
        self.sent_through = -1
        self.in_flight_bytes = 0

    def tick(self, now_s: float, *, waiting_samples: int, activity: str | None = None) -> list[Action]:
        """What is due now; to be called at `next_tick_s` at the latest.

        Args:
            waiting_samples: samples in the outbox.
            activity: what holds the device back, in words that `Ping` allows; the server is told soon after a change.

        Raises:
            ServerUnreachable: nobody ever answered, for too long.
            NotAuthorised: the same, because the server does not know this device's key.
            WrongServerKey: the same, because what is there is not the server whose key was given.
        """
        self._activity = activity
        self._check_patience(now_s, waiting_samples)
        match self.state:
            case State.OFFLINE:
                if now_s < self._resume_at_s:
                    return []
                self._beat(now_s)
                self._was_cut = False
                return [Connect(), self._hello(now_s, waiting_samples)]
            case State.PAUSED:
                return [self._hello(now_s, waiting_samples)] if now_s >= self._resume_at_s else []
            case State.GREETING | State.WELCOMED | State.FINISHING:
                return self._watch_over(now_s, waiting_samples)
            case State.FINISHED:
                return []
        assert_never(self.state)

    def receive(self, message: AnyMessage, now_s: float) -> list[Action]:
        """What a message from the server leads to; messages that make no sense now are ignored.

        Raises:
            RefusedByServer: the server said no for good.
        """
        self._was_heard = True
        self._beat(now_s)
        match message:
            case Ack():
                return self._acknowledged(message, now_s)
            case Welcome():
                self._welcomed(message, now_s)
            case Refusal():
                self._refused(message, now_s)
            case FinishNoted():
                if self.state is State.FINISHING:
                    self._enter(State.FINISHED, now_s)
            case Pong() | Ping() | Hello() | ActivationBatch() | Finished() | Inquiry() | Approval():
                pass
            case PredictRequest() | PredictAnswer():
                pass
            case _:
                assert_never(message)
        return []

    def link_changed(self, event: LinkEvent, now_s: float, *, waiting_samples: int) -> list[Action]:
        """What news of the connection lead to; they also explain every wait until the server is heard again."""
        if event is LinkEvent.UP:
            is_new, self._was_cut, self._trouble = self._was_cut, False, None
            greets = is_new and self.state in (State.WELCOMED, State.FINISHING)
            return [self._hello(now_s, waiting_samples)] if greets else []
        self._trouble = event
        self._was_cut = self._was_cut or event is LinkEvent.DOWN
        if event not in ENDS_ATTEMPT or self.state in (State.OFFLINE, State.FINISHED):
            return []
        actions = self._lose_connection(now_s)
        self._resume_at_s = min(self._resume_at_s, now_s + LONGEST_KEY_BACKOFF_S)
        return actions

    def choose(self, offers: Iterable[Sized], now_s: float) -> tuple[int, ...]:
        """Ordinals of the next batch, now counted as sent; empty when nothing may be sent.

        Args:
            offers: waiting samples with ordinals above `sent_through`, ascending.
        """
        chosen: list[int] = []
        batch_bytes = 0
        for offer in offers:
            batch_bytes += offer.nbytes
            is_full = len(chosen) == BATCH_SAMPLES or (bool(chosen) and batch_bytes > BATCH_BYTES)
            if is_full or not self._may_send(offer.nbytes):
                break
            if not self._in_flight:
                self._note_progress(now_s)
            self._in_flight[offer.ordinal] = offer.nbytes
            self.in_flight_bytes += offer.nbytes
            self.sent_through = offer.ordinal
            chosen.append(offer.ordinal)
        return tuple(chosen)

    def finish(self, totals: Finished, now_s: float) -> list[Action]:
        """Tell the server that nothing more comes; does nothing unless welcomed with nothing in flight."""
        if self.state is not State.WELCOMED or self._in_flight:
            return []
        self._enter(State.FINISHING, now_s)
        return [Send(totals)]

    def next_tick_s(self) -> float:
        """When `tick` has to be called next."""
        match self.state:
            case State.OFFLINE | State.PAUSED:
                due_s = self._resume_at_s
            case State.FINISHED:
                return float("inf")
            case _:
                due_s = self._beat_s + self._timing.ping_after_s
                if self._expects_answer():
                    due_s = min(due_s, self._asked_s + self._timing.answer_timeout_s)
                due_s = min(due_s, self._activity_due_s())
        return min(due_s, self._patience_ends_s())

    def wait(self) -> Wait | None:
        """What the session waits for; None when nothing is owed to it."""
        match self.state:
            case State.OFFLINE | State.GREETING:
                what = f"the server at {self._terms.address} to answer"
            case State.PAUSED:
                what = f"the server, which asked to wait: {self._pause_reason}"
            case State.FINISHING:
                what = f"the server at {self._terms.address} to note the end"
            case State.WELCOMED if self._in_flight:
                what = f"the server at {self._terms.address} to acknowledge {len(self._in_flight)} samples"
            case State.WELCOMED if self._credit_bytes == 0:
                what = f"the server at {self._terms.address} to grant room"
            case _:
                return None
        why = "" if self._trouble is None else describe(self._trouble, self._ends)
        return Wait(what=what, since_s=self._since_s, why=why)

    def _enter(self, state: State, now_s: float) -> None:
        self.state = state
        self._note_progress(now_s)

    def _note_progress(self, now_s: float) -> None:
        """The wait that people are told about, and the one for an answer, both begin now."""
        self._since_s = now_s
        self._asked_s = now_s

    def _forget_in_flight(self) -> None:
        self._in_flight.clear()
        self.in_flight_bytes = 0

    def _beat(self, now_s: float) -> None:
        self._pings = 0
        self._beat_s = now_s

    def _hello(self, now_s: float, waiting_samples: int) -> Action:
        if self.state is State.PAUSED:
            self._since_s = now_s
        self.state = State.GREETING
        self._asked_s = now_s
        self._hello_s = now_s
        self._forget_in_flight()
        return Send(msgspec.structs.replace(self._terms.hello, waiting_samples=waiting_samples))

    def _expects_answer(self) -> bool:
        return self.state is not State.WELCOMED or bool(self._in_flight) or self._credit_bytes == 0

    def _watch_over(self, now_s: float, waiting_samples: int) -> list[Action]:
        """Heartbeat and answer timeout of a connection that is up."""
        if now_s >= self._beat_s + self._timing.ping_after_s:
            if self._pings == PINGS_BEFORE_LOST:
                return self._lose_connection(now_s)
            self._pings += 1
            self._beat_s = now_s
            return [self._ping(now_s)]
        if self._expects_answer() and now_s >= self._asked_s + self._timing.answer_timeout_s:
            return [self._hello(now_s, waiting_samples)]
        if now_s >= self._activity_due_s():
            return [self._ping(now_s)]
        return []

    def _activity_due_s(self) -> float:
        """When a change of the activity is told; an activity that changes all the time is told as often as one pings."""
        if self.state is not State.WELCOMED or self._activity == self._told_activity:
            return float("inf")
        return self._told_s + self._timing.ping_after_s

    def _ping(self, now_s: float) -> Action:
        self._told_activity = self._activity
        self._told_s = now_s
        return Send(Ping(activity=self._activity))

    def _lose_connection(self, now_s: float) -> list[Action]:
        if self.state is not State.GREETING:
            self._since_s = now_s
        self.state = State.OFFLINE
        self._forget_in_flight()
        self._resume_at_s = now_s + self._backoff_s * (0.5 + self._random() / 2)
        self._backoff_s = min(2 * self._backoff_s, self._timing.longest_backoff_s)
        return [Disconnect()]

    def _welcomed(self, welcome: Welcome, now_s: float) -> None:
        if self.state in (State.GREETING, State.PAUSED):
            self._enter(State.WELCOMED, now_s)
            self._forget_in_flight()
            self._told_activity = None
            self._told_s = float("-inf")
            self.sent_through = -1
            self._backoff_s = self._timing.first_backoff_s
        self._credit_bytes = min(welcome.credit_bytes, MOST_IN_FLIGHT_BYTES)

    def _acknowledged(self, ack: Ack, now_s: float) -> list[Action]:
        self._credit_bytes = min(ack.credit_bytes, MOST_IN_FLIGHT_BYTES)
        for verdict in ack.verdicts:
            self.in_flight_bytes -= self._in_flight.pop(verdict.ordinal, 0)
        if self.state is State.WELCOMED:
            self._note_progress(now_s)
        return [Settle(ack.verdicts)]

    def _refused(self, refusal: Refusal, now_s: float) -> None:
        if refusal.code is RefusalCode.HELLO_FIRST:
            # Right after a Hello this answers older messages; later it answers a ping, so the Hello itself was lost.
            hello_was_lost = self.state is State.GREETING and now_s >= self._hello_s + self._timing.ping_after_s
            if hello_was_lost or self.state in (State.WELCOMED, State.FINISHING):
                self._pause("it does not know this connection", delay_s=0, now_s=now_s)
            return
        if refusal.code is RefusalCode.CLOSED and self.state is State.FINISHING:
            self._enter(State.FINISHED, now_s)  # everything is acknowledged, so nothing was refused
            return
        if refusal.retry_after_s is None:
            raise RefusedByServer(
                f"the server at {self._terms.address} refused this device ({refusal.code}): {refusal.detail}",
                cure=refusal_cure(refusal.code),
            )
        if self.state not in (State.OFFLINE, State.FINISHED):
            self._pause(f"{refusal.detail} ({refusal.code})", delay_s=refusal.retry_after_s, now_s=now_s)

    def _pause(self, reason: str, *, delay_s: float, now_s: float) -> None:
        if self.state is not State.PAUSED:
            self._enter(State.PAUSED, now_s)
        self._pause_reason = one_line(reason)
        self._resume_at_s = max(now_s + delay_s, self._hello_s + self._timing.shortest_hello_interval_s)
        self._forget_in_flight()

    def _may_send(self, nbytes: int) -> bool:
        if self.state is not State.WELCOMED:
            return False
        is_alone = not self._in_flight and self._credit_bytes > 0
        return is_alone or self.in_flight_bytes + nbytes <= self._credit_bytes

    def _patience_ends_s(self) -> float:
        if self._was_heard or self._terms.give_up_after_s == 0:
            return float("inf")
        return self._started_s + self._terms.give_up_after_s

    def _check_patience(self, now_s: float, waiting_samples: int) -> None:
        if now_s >= self._patience_ends_s():
            raise failure(
                self._trouble,
                self._ends,
                after_s=now_s - self._started_s,
                kept=f"{waiting_samples} samples wait safely in the outbox",
            )


def refusal_cure(code: RefusalCode) -> str:
    """What to do about a refusal for good."""
    return _CURES.get(code, "see the server's log")


_CURES: Final = {
    RefusalCode.BUNDLE: "give --bundle the bundle that the server was started with",
    RefusalCode.PROTOCOL: "run the same SplitFrozen version on both ends",
    RefusalCode.SELF_TEST: "export a bundle for this kind of processor, or with --quantize none",
    RefusalCode.KEY_NAME: "give --device the name that this key has on the server, or have the key's file renamed there",
    RefusalCode.DEVICE_NAME: "give this device its own --device name",
    RefusalCode.NOT_AUTHORISED: "ask whoever runs the server to let this device in again",
    RefusalCode.CLOSED: "start the server again if more samples shall be trained on",
}
