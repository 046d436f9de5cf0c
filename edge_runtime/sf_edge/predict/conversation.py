"""Asking a prediction server: one request at a time, asked again when its answer was lost, within a time that is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sf_contract.errors import (
    MalformedMessage,
    NotAuthorised,
    RefusedByServer,
    ServerUnreachable,
    SplitFrozenError,
    one_line,
)
from sf_contract.frames import Buffer, RawFrame, decode, encode
from sf_contract.messages import (
    Approval,
    Inquiry,
    PredictAnswer,
    PredictRequest,
    Refusal,
    RefusalCode,
    Welcome,
)
from sf_edge.link.events import ENDS_ATTEMPT, Endpoints, LinkEvent, describe, kind_of, remedy
from sf_edge.link.first_contact import FirstContact
from sf_edge.session import refusal_cure

ASK_AGAIN_S: Final = 3.0
"""An answer that takes longer may have been lost with its connection. Asking again costs the server nothing but work."""


class PredictLink(Protocol):
    """What is needed of a link; `sf_edge.link.dealer.Link` is one."""

    ends: Endpoints

    def connect(self) -> None:
        """Open a new socket."""

    def send(self, frames: Sequence[RawFrame]) -> None:
        """Hand a message over."""

    def receive(self) -> list[bytes] | None:
        """The next message that has arrived."""

    def events(self) -> list[LinkEvent]:
        """What became of the connection since the last call."""

    def wait(self, timeout_s: float, *, wake_descriptors: Sequence[int]) -> None:
        """Block until something happens or the time is over."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an answer may take, and the clock it is measured by."""

    timeout_s: float
    now_s: Callable[[], float]


def check_contact(contact: FirstContact, ends: Endpoints, *, timeout_s: float) -> None:
    """Refuse to go on after a first contact that did not end with an approval.

    Raises:
        ServerUnreachable, WrongServerKey, NotAuthorised: the link did not come about.
        RefusedByServer, NotAuthorised, MalformedMessage: the server said no.
    """
    if contact.trouble is not None:
        raise _lost(contact.trouble, ends)
    match contact.answer:
        case Approval():
            return
        case Refusal() as refusal:
            raise refused(refusal, ends)
        case Welcome() | None:
            raise _too_late(ends, timeout_s)


class Conversation:
    """Requests and their answers over a link that was connected.

    Args:
        patience: for one answer.
    """

    def __init__(self, link: PredictLink, patience: Patience) -> None:
        self._link = link
        self._patience = patience

    def ask(self, request: PredictRequest, buffers: Sequence[Buffer]) -> PredictAnswer:
        """The answer to a request.

        Raises:
            ServerUnreachable, WrongServerKey, NotAuthorised: it did not come in time.
            RefusedByServer: the server said no for good.
            MalformedMessage: the answer is none to this request.
        """
        frames = encode(request, buffers)
        end_s = self._patience.now_s() + self._patience.timeout_s
        again_s = self._patience.now_s()
        trouble: LinkEvent | None = None
        while (now_s := self._patience.now_s()) < end_s:
            if now_s >= again_s:
                self._link.send(frames)
                again_s = now_s + ASK_AGAIN_S
            for event in self._link.events():
                if event in ENDS_ATTEMPT:
                    raise _lost(event, self._link.ends)
                trouble = None if event is LinkEvent.UP else event
                again_s = now_s if event is LinkEvent.UP else again_s
            received = self._link.receive()  # one at a time: a flood of messages must not hide that the time is over
            answer = None if received is None else _answering(received, request)
            if isinstance(answer, PredictAnswer):
                return answer
            if answer is not None:
                again_s = self._wait_as_told(answer, now_s)
            if received is None and again_s > now_s:
                self._link.wait(min(end_s, again_s) - now_s, wake_descriptors=())
        raise (
            _too_late(self._link.ends, self._patience.timeout_s) if trouble is None else _lost(trouble, self._link.ends)
        )

    def _wait_as_told(self, refusal: Refusal, now_s: float) -> float:
        if refusal.retry_after_s is None or refusal.code is RefusalCode.MALFORMED:
            raise refused(refusal, self._link.ends)
        return now_s + refusal.retry_after_s


def _answering(frames: Sequence[RawFrame], request: PredictRequest) -> PredictAnswer | Refusal | None:
    """What answers this request; None for anything else, such as answers to earlier ones, which were asked again."""
    message = decode(frames).message
    if isinstance(message, Refusal):
        return message
    if not isinstance(message, PredictAnswer) or message.number != request.number:
        return None
    if len(message.predictions) != len(request.tokens):
        raise MalformedMessage(f"the answer has {len(message.predictions)} predictions for {len(request.tokens)} texts")
    return message


def inquiry_of(request_by: str, *, protocol: int, software: str, bundle_id: str, self_test_error: float) -> Inquiry:
    """The question whether this device may ask."""
    return Inquiry(
        protocol=protocol,
        software=software,
        device=request_by,
        bundle_id=bundle_id,
        self_test_error=self_test_error,
    )


def refused(refusal: Refusal, ends: Endpoints) -> SplitFrozenError:
    """A refusal as an error."""
    said = f"the server at {ends.address} refused ({refusal.code}): {one_line(refusal.detail)}"
    match refusal.code:
        case RefusalCode.NOT_AUTHORISED:
            return NotAuthorised(said, cure="put this device's .pub file into the server's folder of authorized keys")
        case RefusalCode.MALFORMED | RefusalCode.HELLO_FIRST:
            return MalformedMessage(said, cure="give --server the address of sf-server serve, of the same version")
        case _:
            return RefusedByServer(said, cure=refusal_cure(refusal.code))


def _lost(event: LinkEvent, ends: Endpoints) -> SplitFrozenError:
    return kind_of(event, ends)(f"{ends.address}: {describe(event, ends)}", cure=remedy(event, ends))


def _too_late(ends: Endpoints, timeout_s: float) -> ServerUnreachable:
    return ServerUnreachable(
        f"the server at {ends.address} did not answer within {timeout_s:g} s",
        cure="see the server's messages, or give it more time with --timeout-s",
    )
