"""The loop of `sf-server serve`: receive, wait a moment for more, compute together, answer. Nothing is written anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sf_contract.frames import encode
from sf_contract.limits import MIB
from sf_server.ingest.steps import Answer
from sf_server.link.authorized import AuthorizedKeys
from sf_server.link.router import Arrival, Router
from sf_server.serving.desk import Desk, Job, Probabilities

POLL_S: Final = 0.2
GROUP_BYTES: Final = 16 * MIB
GROUP_MESSAGES: Final = 256
"""What is judged and computed together, at most; more waits in the sockets."""


class ComputesJobs(Protocol):
    """Gives probabilities; `sf_server.serving.classifier.Classifier` does."""

    def of_jobs(self, jobs: Sequence[Job]) -> list[list[Probabilities]]:
        """Probabilities of the usable texts of each job."""
        ...


@dataclass(frozen=True, slots=True)
class PredictionService:
    """Socket, decisions and model, brought together.

    Attributes:
        window_s: how long a first request waits for others, to be computed with them.
        authorized: who may come in, None when devices come in the clear.
        say: takes a line for the person watching.
    """

    router: Router
    desk: Desk
    classifier: ComputesJobs
    window_s: float
    authorized: AuthorizedKeys | None
    say: Callable[[str], None]

    def serve(self, is_over: Callable[[], bool]) -> None:
        """Answer until told to stop; what was received is answered before."""
        while not is_over():
            self._look_at_keys()
            arrivals = self._receive()
            if arrivals:
                answers, jobs = self.desk.take(arrivals)
                self._send(answers)
                self._send(self._computed(jobs))
            self.router.take_gone()

    def _receive(self) -> list[Arrival]:
        arrivals = self._received(POLL_S, room=GROUP_BYTES)
        end_s = time.monotonic() + self.window_s
        while arrivals and (left_s := end_s - time.monotonic()) > 0 and len(arrivals) < GROUP_MESSAGES:
            room = GROUP_BYTES - sum(arrival.nbytes for arrival in arrivals)
            if room <= 0:
                break
            arrivals += self._received(left_s, room=room)
        return arrivals

    def _received(self, timeout_s: float, *, room: int) -> list[Arrival]:
        return self.router.receive(timeout_s=timeout_s, max_bytes=room, max_messages=GROUP_MESSAGES)

    def _computed(self, jobs: Sequence[Job]) -> list[Answer]:
        if not jobs:
            return []
        found = self.classifier.of_jobs(jobs)
        return [self.desk.answer(job, probabilities) for job, probabilities in zip(jobs, found, strict=True)]

    def _send(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self.router.send(answer.identity, encode(answer.message))

    def _look_at_keys(self) -> None:
        if self.authorized is not None and self.authorized.refresh(now_s=time.monotonic()):
            self.say(f"authorized devices: {self.authorized.devices}, in {self.authorized.folder}")
