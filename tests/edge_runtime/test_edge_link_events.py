"""From what ZeroMQ's monitor reports to what the session does and says about it: no sockets, no clock."""

from __future__ import annotations

import pytest

from sf_contract.errors import NotAuthorised, ServerUnreachable, SplitFrozenError, WrongServerKey
from sf_contract.messages import PROTOCOL_VERSION, Hello, Refusal, RefusalCode, Welcome
from sf_edge.actions import Connect, Disconnect, Send
from sf_edge.link.events import ENDS_ATTEMPT, AttemptWatch, Endpoints, LinkEvent, Step, describe, failure, remedy
from sf_edge.session import LONGEST_KEY_BACKOFF_S, Session, State, Terms

ADDRESS = "tcp://server:5555"
CLEAR = Endpoints(address=ADDRESS)
ENCRYPTED = Endpoints(address=ADDRESS, key_id="d0d0", server_key_id="5e5e")
HELLO = Hello(
    protocol=PROTOCOL_VERSION, software="test", device="pi", outbox="0" * 32, bundle_id="1" * 64,
    self_test_error=0.0, waiting_samples=0,
)  # fmt: skip
WELCOME = Welcome(software="test", credit_bytes=1000)


@pytest.mark.parametrize(
    ("steps", "events"),
    [
        ("CONNECTING CONNECTED HANDSHAKE_DONE DISCONNECTED RETRIED", [LinkEvent.UP, LinkEvent.DOWN]),
        ("CONNECTING RETRIED CONNECTING RETRIED", [LinkEvent.NO_LISTENER] * 2),
        ("RETRIED RETRIED", [LinkEvent.NO_ADDRESS] * 2),
        ("CONNECTING CONNECTED KEY_REFUSED DISCONNECTED", [LinkEvent.KEY_REFUSED]),
        ("CONNECTING CONNECTED OTHER_MECHANISM DISCONNECTED", [LinkEvent.OTHER_MECHANISM]),
        ("CONNECTING CONNECTED HANDSHAKE_DROPPED DISCONNECTED RETRIED", [LinkEvent.DROPPED]),
        ("CONNECTING CONNECTED HANDSHAKE_TIMED_OUT DISCONNECTED RETRIED", [LinkEvent.SILENT]),
        ("CONNECTING CONNECTED DISCONNECTED", [LinkEvent.NOT_OURS]),
        ("CONNECTING CONNECTED HANDSHAKE_DONE DISCONNECTED RETRIED CONNECTING RETRIED CONNECTING CONNECTED HANDSHAKE_DONE",
         [LinkEvent.UP, LinkEvent.DOWN, LinkEvent.NO_LISTENER, LinkEvent.UP]),
    ],
)  # fmt: skip
def test_the_steps_of_an_attempt_amount_to_these_events(steps: str, events: list[LinkEvent]) -> None:
    watch = AttemptWatch(has_host=True)
    noted = [watch.note(Step[name]) for name in steps.split()]
    assert [event for event in noted if event is not None] == events


def test_an_address_without_a_host_cannot_lack_one() -> None:
    assert AttemptWatch(has_host=False).note(Step.RETRIED) is LinkEvent.NO_LISTENER


@pytest.mark.parametrize("ends", [CLEAR, ENCRYPTED])
@pytest.mark.parametrize("event", list(LinkEvent))
def test_every_event_can_be_said_and_has_a_cure(event: LinkEvent, ends: Endpoints) -> None:
    problem = failure(event, ends, after_s=60, kept="7 samples wait")
    assert describe(event, ends) in problem.what
    assert ADDRESS in problem.what
    assert "7 samples wait" in problem.what
    assert problem.cure == remedy(event, ends)
    assert "None" not in problem.one_line()
    assert "{" not in problem.one_line()


@pytest.mark.parametrize(
    ("event", "ends", "kind"),
    [
        (None, ENCRYPTED, ServerUnreachable),
        (LinkEvent.UP, ENCRYPTED, ServerUnreachable),
        (LinkEvent.DOWN, ENCRYPTED, ServerUnreachable),
        (LinkEvent.NO_LISTENER, ENCRYPTED, ServerUnreachable),
        (LinkEvent.NO_ADDRESS, CLEAR, ServerUnreachable),
        (LinkEvent.SILENT, ENCRYPTED, ServerUnreachable),
        (LinkEvent.KEY_REFUSED, ENCRYPTED, NotAuthorised),
        (LinkEvent.DROPPED, ENCRYPTED, WrongServerKey),
        (LinkEvent.DROPPED, CLEAR, WrongServerKey),
        (LinkEvent.OTHER_MECHANISM, ENCRYPTED, WrongServerKey),
        (LinkEvent.OTHER_MECHANISM, CLEAR, WrongServerKey),
        (LinkEvent.NOT_OURS, CLEAR, WrongServerKey),
    ],
)
def test_a_first_wait_ends_with_the_error_of_what_is_known(
    event: LinkEvent | None, ends: Endpoints, kind: type[SplitFrozenError]
) -> None:
    session = greeting_session(give_up_after_s=10, ends=ends)
    if event is not None:
        session.link_changed(event, 1.0, waiting_samples=0)
    with pytest.raises(kind) as ended:
        session.tick(10.0, waiting_samples=3)
    assert "for 10 s" in ended.value.what
    assert "3 samples wait safely" in ended.value.what


def greeting_session(*, give_up_after_s: float = 60.0, ends: Endpoints = ENCRYPTED) -> Session:
    terms = Terms(hello=HELLO, address=ADDRESS, give_up_after_s=give_up_after_s, ends=ends)
    session = Session(terms, random=lambda: 1.0, now_s=0.0)
    session.tick(0.0, waiting_samples=0)
    return session


def welcomed_session() -> Session:
    session = greeting_session()
    session.link_changed(LinkEvent.UP, 0.0, waiting_samples=0)
    session.receive(WELCOME, 0.0)
    return session


def test_nobody_listening_is_told_and_left_to_zeromq_which_tries_again() -> None:
    session = greeting_session()
    assert session.link_changed(LinkEvent.NO_LISTENER, 1.0, waiting_samples=0) == []
    assert session.state is State.GREETING
    wait = session.wait()
    assert wait is not None
    assert wait.why == "nobody accepts connections there"


@pytest.mark.parametrize("event", sorted(ENDS_ATTEMPT, key=lambda event: event.name))
def test_after_a_failed_handshake_a_new_socket_is_opened_soon(event: LinkEvent) -> None:
    session = greeting_session(give_up_after_s=0)
    now_s = 0.0
    for _ in range(12):
        assert session.link_changed(event, now_s, waiting_samples=0) == [Disconnect()]
        assert session.state is State.OFFLINE
        due_s = session.next_tick_s()
        assert now_s < due_s <= now_s + LONGEST_KEY_BACKOFF_S
        now_s = due_s
        connect, hello = session.tick(now_s, waiting_samples=0)
        assert connect == Connect()
        assert isinstance(hello, Send)
    wait = session.wait()
    assert wait is not None
    assert wait.since_s == 0.0
    assert wait.why == describe(event, ENCRYPTED)


def test_a_device_that_was_welcomed_once_waits_for_its_key_for_ever() -> None:
    session = welcomed_session()
    refusal = Refusal(code=RefusalCode.NOT_AUTHORISED, detail="its .pub file was removed", retry_after_s=5)
    session.receive(refusal, 1.0)
    assert session.state is State.PAUSED
    session.link_changed(LinkEvent.DOWN, 2.0, waiting_samples=0)
    assert session.link_changed(LinkEvent.KEY_REFUSED, 3.0, waiting_samples=0) == [Disconnect()]
    session.tick(1e6, waiting_samples=0)
    wait = session.wait()
    assert wait is not None
    assert "does not know this device's key d0d0" in wait.why


def test_when_a_cut_connection_is_back_it_greets_at_once() -> None:
    session = welcomed_session()
    session.link_changed(LinkEvent.DOWN, 1.0, waiting_samples=0)
    (greeting,) = session.link_changed(LinkEvent.UP, 2.0, waiting_samples=4)
    assert isinstance(greeting, Send)
    assert isinstance(greeting.message, Hello)
    assert greeting.message.waiting_samples == 4
    assert session.link_changed(LinkEvent.UP, 2.0, waiting_samples=4) == []


def test_the_first_connection_needs_no_second_greeting_even_when_its_news_come_late() -> None:
    session = greeting_session()
    session.receive(WELCOME, 0.0)
    assert session.link_changed(LinkEvent.UP, 0.1, waiting_samples=0) == []
    assert session.state is State.WELCOMED


def test_good_news_end_the_explanation() -> None:
    session = greeting_session()
    session.link_changed(LinkEvent.DROPPED, 1.0, waiting_samples=0)
    session.link_changed(LinkEvent.UP, 2.0, waiting_samples=0)
    wait = session.wait()
    assert wait is not None
    assert wait.why == ""


@pytest.mark.parametrize("event", list(LinkEvent))
def test_a_session_that_has_finished_stays_finished(event: LinkEvent) -> None:
    session = welcomed_session()
    session.state = State.FINISHED
    assert session.link_changed(event, 1.0, waiting_samples=0) == []
    assert session.state is State.FINISHED
