"""What a message leads to: an answer at once, or a task that has to be durable before it is answered."""

from __future__ import annotations

from dataclasses import dataclass

from sf_contract.activations import EncodedSample
from sf_contract.messages import AnyMessage, Finished, Hello, Rejected
from sf_server.ingest.admission import Session


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A message for one connection."""

    identity: bytes
    message: AnyMessage


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch whose samples were examined, in their order."""

    examined: tuple[EncodedSample | Rejected, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Something that has to be durable before it is answered."""

    identity: bytes
    session: Session
    work: Hello | Batch | Finished


Step = Task | Answer
