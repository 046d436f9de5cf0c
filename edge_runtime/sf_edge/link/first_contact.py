"""One question to a server, and the first thing that comes of it: for finding out what is wrong with a link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sf_contract.errors import MalformedMessage
from sf_contract.frames import decode, encode
from sf_contract.messages import Approval, Hello, Inquiry, Refusal, Welcome
from sf_edge.link.dealer import Link
from sf_edge.link.events import LinkEvent

FirstAnswer = Welcome | Approval | Refusal


@dataclass(frozen=True, slots=True)
class FirstContact:
    """How far one attempt came.

    Attributes:
        handshake_done: the connection was made; if the link has keys, both sides have proven theirs.
        answer: what the server said to the question; None when it said nothing that this protocol knows.
        trouble: what went wrong with the link, None when nothing did.
    """

    handshake_done: bool
    answer: FirstAnswer | None
    trouble: LinkEvent | None


def make_contact(
    link: Link, question: Hello | Inquiry, *, timeout_s: float, now_s: Callable[[], float]
) -> FirstContact:
    """Connect, ask, and wait for the first of: the answer, trouble with the link, end of the time.

    The link is connected afterwards unless there was trouble; the caller drops it.

    Raises:
        UsageError: ZeroMQ cannot use the address.
    """
    end_s = now_s() + timeout_s
    link.connect()
    link.send(encode(question))
    handshake_done = False
    while True:
        for event in link.events():
            if event is not LinkEvent.UP:
                return FirstContact(handshake_done=handshake_done, answer=None, trouble=event)
            handshake_done = True
        answer = _answer(link)
        if answer is not None:
            return FirstContact(handshake_done=True, answer=answer, trouble=None)
        left_s = end_s - now_s()
        if left_s <= 0:
            return FirstContact(handshake_done=handshake_done, answer=None, trouble=None)
        link.wait(left_s, wake_descriptors=())


def _answer(link: Link) -> FirstAnswer | None:
    while (frames := link.receive()) is not None:
        try:
            message = decode(frames).message
        except MalformedMessage:
            continue
        if isinstance(message, Welcome | Approval | Refusal):
            return message
    return None
