"""What the prediction server answers, and what it has to compute: pure decisions, without sockets, files or PyTorch.

Each request is judged by itself. There are no sessions, so a server that was restarted has lost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import numpy as np
import numpy.typing as npt

from sf_contract import SOFTWARE
from sf_contract.activations import unpack_rows
from sf_contract.codec import EncodedRows
from sf_contract.errors import MalformedMessage
from sf_contract.frames import Buffer, Envelope, decode
from sf_contract.manifest import Manifest
from sf_contract.messages import (
    Ack,
    ActivationBatch,
    AnyMessage,
    Approval,
    ClassProbability,
    Finished,
    FinishNoted,
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
    Welcome,
)
from sf_server.ingest.admission import RETRY_SOON_S, Session, find_rows_fault, judge_inquiry, refusal
from sf_server.ingest.steps import Answer
from sf_server.link.gate import Gate
from sf_server.link.notices import Notices
from sf_server.link.router import Arrival

Probabilities = npt.NDArray[np.float32]
"""`[classes]`, they add up to 1."""

NO_SAMPLES_DETAIL: Final = "this server gives predictions (sf-server serve) and takes no samples; sf-server train does"
_SHORT_ID: Final = 12


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A request that was accepted; texts whose rows cannot be used are rejected already."""

    identity: bytes
    request: PredictRequest
    texts: tuple[EncodedRows | Rejected, ...]

    @property
    def usable(self) -> list[EncodedRows]:
        """Rows of the texts to compute, in their order."""
        return [text for text in self.texts if isinstance(text, EncodedRows)]


class Desk:
    """Judges what devices ask.

    Args:
        bundles: manifests by bundle id, all for text classification.
        gate: keys and rates of devices; None lets every name in, as fast as it can.
        clock: seconds since 1970.
        notices: takes lines for the person watching.
    """

    def __init__(
        self,
        *,
        bundles: Mapping[str, Manifest],
        clock: Callable[[], float],
        notices: Notices,
        gate: Gate | None = None,
    ) -> None:
        self._bundles = bundles
        self._clock = clock
        self._notices = notices
        self._gate = gate or Gate(notices)
        self.requests = 0
        self.texts = 0

    def take(self, arrivals: Iterable[Arrival]) -> tuple[list[Answer], list[Job]]:
        """What can be answered at once, and what has to be computed: at most one request of each connection."""
        answers: list[Answer] = []
        jobs: dict[bytes, Job] = {}
        for arrival in arrivals:
            found = self._judge(arrival, is_waiting=arrival.identity in jobs)
            if isinstance(found, Job):
                jobs[arrival.identity] = found
            else:
                answers.append(Answer(arrival.identity, found))
        self._gate.forget_idle(now_s=self._clock())
        return answers, list(jobs.values())

    def answer(self, job: Job, probabilities: Sequence[Probabilities]) -> Answer:
        """The answer to a job from the probabilities of its usable texts, in their order."""
        in_order = iter(probabilities)
        predictions = tuple(
            text if isinstance(text, Rejected) else _predicted(next(in_order), job.request.classes)
            for text in job.texts
        )
        self.requests += 1
        self.texts += len(predictions)
        return Answer(job.identity, PredictAnswer(number=job.request.number, predictions=predictions))

    def _judge(self, arrival: Arrival, *, is_waiting: bool) -> AnyMessage | Job:
        try:
            return self._judge_message(arrival, decode(arrival.frames), is_waiting=is_waiting)
        except MalformedMessage as problem:
            key = "no key" if arrival.sender.key is None else f"key {arrival.sender.key.key_id}"
            self._notices.say_once(
                ("malformed", key),
                f"a device with {key} sent something that is no message ({problem.what}); it is told so each time",
            )
            return refusal(RefusalCode.MALFORMED, problem.what, retry_after_s=RETRY_SOON_S)

    def _judge_message(self, arrival: Arrival, envelope: Envelope, *, is_waiting: bool) -> AnyMessage | Job:
        message = envelope.message
        match message:
            case PredictRequest():
                return self._judge_request(arrival, message, envelope.buffers, is_waiting=is_waiting)
            case Inquiry() if not envelope.buffers:
                return self._judge_inquiry(arrival, message)
            case Ping() if not envelope.buffers:
                return Pong()
            case Hello() | ActivationBatch() | Finished():
                return refusal(RefusalCode.CLOSED, NO_SAMPLES_DETAIL)
            case Inquiry() | Ping():
                raise MalformedMessage(f"{type(message).__name__} came with buffers; it has none")
            case Welcome() | Refusal() | Ack() | FinishNoted() | Pong() | Approval() | PredictAnswer():
                raise MalformedMessage(f"{type(message).__name__} is a message that only a server sends")
            case _:
                assert_never(message)

    def _judge_inquiry(self, arrival: Arrival, inquiry: Inquiry) -> Approval | Refusal:
        now_s = self._clock()
        refused = self._gate.judge_name(arrival.sender, inquiry.device) or judge_inquiry(
            inquiry, bundles=self._bundles, owner=None, present=(), now_s=now_s
        )
        return refused or Approval(software=SOFTWARE, clock_s=max(0.0, now_s))

    def _judge_request(
        self, arrival: Arrival, request: PredictRequest, buffers: Sequence[Buffer], *, is_waiting: bool
    ) -> Refusal | Job:
        manifest = self._bundles.get(request.bundle_id)
        refused = self._gate.judge_name(arrival.sender, request.device)
        if refused is not None:
            return refused
        if manifest is None:
            known = ", ".join(known_id[:_SHORT_ID] for known_id in self._bundles)
            return refusal(
                RefusalCode.BUNDLE,
                f"the device has bundle {request.bundle_id[:_SHORT_ID]}, this server answers for {known}",
            )
        session = Session(device=request.device, outbox="", bundle_id=request.bundle_id)
        early = self._gate.judge_pace(session, arrival.nbytes, now_s=self._clock())
        if early is not None:
            return early
        if is_waiting:
            return refusal(
                RefusalCode.OVER_CREDIT,
                "a request of this connection is being computed; send the next one after its answer",
                retry_after_s=RETRY_SOON_S,
            )
        return self._examined(arrival.identity, request, buffers, manifest)

    @staticmethod
    def _examined(identity: bytes, request: PredictRequest, buffers: Sequence[Buffer], manifest: Manifest) -> Job:
        texts = unpack_rows(
            request.tokens, buffers, codec=manifest.wire_codec, hidden=manifest.geometry.hidden
        )  # raises MalformedMessage
        return Job(
            identity=identity,
            request=request,
            texts=tuple(find_rows_fault(index, rows, manifest.geometry) or rows for index, rows in enumerate(texts)),
        )


def _predicted(probabilities: Probabilities, most: int) -> Predicted:
    likeliest = np.argsort(-probabilities, kind="stable")[:most].tolist()
    return Predicted(
        tuple(
            ClassProbability(label=label, probability=min(1.0, max(0.0, float(probabilities[label]))))
            for label in likeliest
        )
    )
