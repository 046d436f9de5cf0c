"""Ingest: one group of arrivals at a time is judged, made durable in one transaction, and only then answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, assert_never

from sf_contract import SOFTWARE
from sf_contract.errors import MalformedMessage
from sf_contract.frames import Buffer, Envelope, decode
from sf_contract.link_keys import LinkPublicKey
from sf_contract.manifest import Manifest
from sf_contract.messages import (
    Ack,
    ActivationBatch,
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
from sf_server.ingest.admission import (
    RETRY_SOON_S,
    Session,
    find_fault,
    judge_batch,
    judge_forgotten,
    judge_hello,
    judge_inquiry,
    refusal,
)
from sf_server.ingest.settling import Settling
from sf_server.ingest.steps import Answer, Batch, Step, Task
from sf_server.link.connections import Connection, Connections
from sf_server.link.gate import Gate
from sf_server.link.notices import Notices
from sf_server.link.router import Arrival, Sender
from sf_server.store.store import Store

Say = Callable[[str], None]
Clock = Callable[[], float]

CLOSED_DETAIL: Final = "training is complete and needs no more samples; what this device still holds was not used"
HELLO_FIRST_DETAIL: Final = "this server does not know the connection yet; greet with a Hello first"

_FROM_SERVER: Final = (Welcome, Refusal, Ack, FinishNoted, Pong, Approval, PredictAnswer)


class Ingest:
    """Decides about arrivals and writes them to the store; the caller owns the socket.

    Args:
        bundles: manifests by bundle id.
        credit_bytes: payload each device may have in flight.
        gate: keys and rates of devices; None lets every name in, as fast as it can.
        clock: seconds since 1970.
        say: takes a line for the person watching.
    """

    def __init__(
        self,
        *,
        store: Store,
        bundles: Mapping[str, Manifest],
        credit_bytes: int,
        clock: Clock,
        say: Say,
        gate: Gate | None = None,
    ) -> None:
        self._store = store
        self._banned = store.removals().banned
        self._bundles = bundles
        self._credit_bytes = credit_bytes
        self._clock = clock
        self._notices = Notices(say)
        self._gate = gate or Gate(self._notices)
        self._connections = Connections()
        self._settling = Settling(
            store, self._connections, self._gate, credit_bytes=credit_bytes, notices=self._notices
        )
        self._is_closed = False

    def process(self, arrivals: Sequence[Arrival]) -> list[Answer]:
        """Answers to a group of messages, in their order; whatever an answer confirms is durable.

        Raises:
            StoreError: the store cannot be used any more.
        """
        now_s = self._clock()
        steps = [self._judge(arrival, now_s) for arrival in arrivals]
        answers = self._settling.settle(steps, now_s)
        self._connections.all_answered()
        return answers

    def close(self) -> None:
        """From now on devices may still finish, but nobody may send samples."""
        self._is_closed = True

    def farewells(self) -> list[Answer]:
        """For devices that have not finished: nothing more is wanted from them."""
        return [
            Answer(identity, refusal(RefusalCode.CLOSED, CLOSED_DETAIL)) for identity in self._connections.unfinished()
        ]

    def grants(self) -> list[Answer]:
        """New credit for devices that were told to wait because they sent too fast."""
        if not self._gate.limits_rates:
            return []
        now_s = self._clock()
        answers: list[Answer] = []
        for identity, connection, session in self._connections.with_session():
            if connection.credit_bytes == 0 and not connection.finished:
                credit_bytes = self._settling.grant(identity, session, now_s)
                if credit_bytes > 0:
                    answers.append(Answer(identity, Welcome(software=SOFTWARE, credit_bytes=credit_bytes)))
        return answers

    def dismissals(self) -> tuple[list[Answer], set[LinkPublicKey]]:
        """Refusals that end the sessions of devices whose keys were withdrawn, and those keys."""
        answers: list[Answer] = []
        keys: set[LinkPublicKey] = set()
        for identity, connection, session in self._connections.with_session():
            refused = self._gate.judge_name(Sender(key=connection.key), session.device)
            if refused is not None and connection.key is not None:
                self._connections.end(identity)
                answers.append(Answer(identity, refused))
                keys.add(connection.key)
        return answers, keys

    def forget(self, gone: Iterable[bytes]) -> None:
        """These connections do not exist any more; the names of their devices are free."""
        for identity in gone:
            self._connections.drop(identity)

    def note_sent(self, identity: bytes, nbytes: int) -> None:
        """Count an answer that was handed to the network."""
        session = self._connections.session_of(identity)
        if session is not None:
            self._settling.traffic_of(session).bytes_out += nbytes

    def flush(self) -> None:
        """Write down traffic that is not in the store yet (when it is full, later), and forget silent connections."""
        now_s = self._clock()
        self._connections.forget_silent(now_s=now_s)
        self._gate.forget_idle(now_s=now_s)
        self._settling.flush(self._clock())

    def _judge(self, arrival: Arrival, now_s: float) -> Step:
        connection = self._connections.heard(arrival.identity, arrival.sender.key, now_s=now_s)
        try:
            step = self._judge_message(arrival, connection, decode(arrival.frames), now_s)
        except MalformedMessage as problem:
            step = Answer(arrival.identity, self._refuse_malformed(connection, problem))
        if connection.session is not None:
            self._settling.traffic_of(connection.session).bytes_in += arrival.nbytes
        return step

    def _judge_message(self, arrival: Arrival, connection: Connection, envelope: Envelope, now_s: float) -> Step:
        identity, message = arrival.identity, envelope.message
        if isinstance(message, PredictRequest):
            raise MalformedMessage("this server receives samples and gives no predictions; sf-server serve does")
        if envelope.buffers and not isinstance(message, ActivationBatch):
            raise MalformedMessage(f"{type(message).__name__} came with {len(envelope.buffers)} buffers; it has none")
        if isinstance(message, _FROM_SERVER):
            raise MalformedMessage(f"{type(message).__name__} is a message that only a server sends")
        if self._is_closed and isinstance(message, Hello | Inquiry | ActivationBatch):
            return Answer(identity, refusal(RefusalCode.CLOSED, CLOSED_DETAIL))
        if isinstance(message, Hello):
            return self._judge_hello(arrival, message, now_s)
        if isinstance(message, Inquiry):
            return Answer(identity, self._judge_inquiry(arrival, message, now_s))
        session = connection.session
        if session is None:
            # After a Ping too: so a device learns early that its session was lost with a former ingest process.
            return Answer(identity, refusal(RefusalCode.HELLO_FIRST, HELLO_FIRST_DETAIL, retry_after_s=0))
        refused = self._gate.judge_name(arrival.sender, session.device)
        if refused is not None:
            self._connections.end(identity)
            return Answer(identity, refused)
        return self._judge_work(arrival, connection, session, message, envelope.buffers)

    def _judge_work(
        self,
        arrival: Arrival,
        connection: Connection,
        session: Session,
        message: Ping | Finished | ActivationBatch,
        buffers: tuple[Buffer, ...],
    ) -> Step:
        identity = arrival.identity
        match message:
            case Ping(activity=activity):
                self._settling.traffic_of(session).activity = activity or ""
                return Answer(identity, Pong())
            case Finished():
                return Task(identity, session, message)
            case ActivationBatch():
                payload_bytes = sum(buffer.nbytes for buffer in buffers)
                early = self._gate.judge_pace(session, payload_bytes, now_s=self._clock())
                if early is not None:
                    return Answer(identity, early)
                return self._judge_batch(identity, connection, session, message, buffers)
            case _:
                assert_never(message)

    def _judge_hello(self, arrival: Arrival, hello: Hello, now_s: float) -> Step:
        identity = arrival.identity
        refused = self._gate.judge_name(arrival.sender, hello.device)
        if refused is not None:
            self._connections.end(identity)
            return Answer(identity, refused)
        judged = judge_forgotten(hello.device, self._banned) or judge_hello(
            hello,
            bundles=self._bundles,
            owner=self._store.owner(hello.outbox),
            present=self._connections.present_besides(identity),
            now_s=now_s,
        )
        if isinstance(judged, Refusal):
            self._notices.say_once((hello.device, judged.code), f"{hello.device} is refused: {judged.detail}")
            return Answer(identity, judged)
        self._connections.begin(identity, judged)
        self._settling.traffic_of(judged).activity = ""  # it was said in an earlier session
        return Task(identity, judged, hello)

    def _judge_inquiry(self, arrival: Arrival, inquiry: Inquiry, now_s: float) -> Approval | Refusal:
        """What a Hello would lead to; nothing is begun, ended or written down, and a device that is connected stays so."""
        refused = (
            self._gate.judge_name(arrival.sender, inquiry.device)
            or judge_forgotten(inquiry.device, self._banned)
            or judge_inquiry(
                inquiry,
                bundles=self._bundles,
                owner=None if inquiry.outbox is None else self._store.owner(inquiry.outbox),
                present=self._connections.present_besides(arrival.identity),
                now_s=now_s,
            )
        )
        return refused or Approval(software=SOFTWARE, clock_s=max(0.0, now_s))

    def _judge_batch(
        self,
        identity: bytes,
        connection: Connection,
        session: Session,
        batch: ActivationBatch,
        buffers: tuple[Buffer, ...],
    ) -> Step:
        manifest = self._bundles[session.bundle_id]
        judged = judge_batch(
            batch,
            buffers,
            session=session,
            manifest=manifest,
            waiting_bytes=connection.waiting_bytes,
            credit_bytes=self._credit_bytes,
        )
        if isinstance(judged, Refusal):
            return Answer(identity, judged)
        connection.waiting_bytes += sum(sample.nbytes for sample in judged)
        connection.finished = False
        examined = tuple(find_fault(sample, manifest) or sample for sample in judged)
        return Task(identity, session, Batch(examined))

    def _refuse_malformed(self, connection: Connection, problem: MalformedMessage) -> Refusal:
        sender = "someone who did not greet"
        if connection.session is not None:
            sender = connection.session.device
            self._settling.traffic_of(connection.session).malformed += 1
        self._notices.say_once(
            (sender, RefusalCode.MALFORMED),
            f"{sender} sent something that is no message ({problem.what}); it is told so each time",
        )
        return refusal(RefusalCode.MALFORMED, problem.what, retry_after_s=RETRY_SOON_S)
