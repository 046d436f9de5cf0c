"""Making durable what a group of messages asks for: everything, else all but the samples, else nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sf_contract import SOFTWARE
from sf_contract.activations import EncodedSample
from sf_contract.errors import DiskFull
from sf_contract.messages import Ack, Finished, FinishNoted, Hello, RefusalCode, Rejected, Verdict, Welcome
from sf_server.ingest.admission import RETRY_WHEN_FULL_S, Session, refusal
from sf_server.ingest.steps import Answer, Batch, Step, Task
from sf_server.link.connections import Connections, Traffic
from sf_server.link.gate import Gate
from sf_server.link.notices import Notices
from sf_server.store.store import Store

FULL_DETAIL: Final = "the server has no room left for samples; keep them and try again"


class Settling:
    """Carries tasks out in the store, and keeps the traffic that is not in it yet.

    Args:
        credit_bytes: payload each device may have in flight.
    """

    def __init__(
        self, store: Store, connections: Connections, gate: Gate, *, credit_bytes: int, notices: Notices
    ) -> None:
        self._store = store
        self._connections = connections
        self._gate = gate
        self._credit_bytes = credit_bytes
        self._notices = notices
        self._traffic: dict[str, Traffic] = {}
        self._store_is_full = False

    def settle(self, steps: Sequence[Step], now_s: float) -> list[Answer]:
        """Answers in the order of the steps; whatever one confirms is durable.

        Raises:
            StoreError: the store cannot be used any more.
        """
        try:
            return self._carry_out_all(steps, now_s)
        except DiskFull as problem:
            self._note_full(problem)
        without_samples = [_refused(step) if _is_batch(step) else step for step in steps]
        try:
            return self._carry_out_all(without_samples, now_s)
        except DiskFull:
            for step in steps:
                if isinstance(step, Task) and isinstance(step.work, Hello):
                    self._connections.end(step.identity)
        return [_refused(step) for step in steps]

    def _carry_out_all(self, steps: Sequence[Step], now_s: float) -> list[Answer]:
        if all(isinstance(step, Answer) for step in steps):
            return [step for step in steps if isinstance(step, Answer)]
        with self._store.commit():
            answers = [self._carry_out(step, now_s) if isinstance(step, Task) else step for step in steps]
            self._write_traffic(now_s)
        self._traffic.clear()
        if self._store_is_full and any(map(_is_batch, steps)):
            self._store_is_full = False
            self._notices.say("there is room for samples again")
        return answers

    def _carry_out(self, task: Task, now_s: float) -> Answer:
        match task.work:
            case Hello():
                return Answer(task.identity, self._welcome(task, task.work, now_s))
            case Batch():
                return Answer(task.identity, self._store_batch(task, task.work, now_s))
            case Finished():
                return Answer(task.identity, self._note_finished(task, task.work, now_s))

    def _welcome(self, task: Task, hello: Hello, now_s: float) -> Welcome:
        session = task.session
        self._store.note_hello(
            device=session.device,
            outbox=session.outbox,
            bundle_id=session.bundle_id,
            self_test_error=hello.self_test_error,
            waiting_samples=hello.waiting_samples,
            now_s=now_s,
        )
        return Welcome(software=SOFTWARE, credit_bytes=self.grant(task.identity, session, now_s))

    def _store_batch(self, task: Task, batch: Batch, now_s: float) -> Ack:
        session = task.session
        rejected = [item for item in batch.examined if isinstance(item, Rejected)]
        usable = [item for item in batch.examined if isinstance(item, EncodedSample)]
        stored = self._store.add(
            device=session.device,
            outbox=session.outbox,
            bundle_id=session.bundle_id,
            samples=usable,
            now_s=now_s,
        )
        if rejected:
            self._store.note_rejected(outbox=session.outbox, samples=len(rejected))
        in_order = iter(stored)
        verdicts: list[Verdict] = [item if isinstance(item, Rejected) else next(in_order) for item in batch.examined]
        return Ack(verdicts=tuple(verdicts), credit_bytes=self.grant(task.identity, session, now_s))

    def _note_finished(self, task: Task, finished: Finished, now_s: float) -> FinishNoted:
        self._store.note_finished(outbox=task.session.outbox, skipped_rows=finished.skipped_rows, now_s=now_s)
        self._connections.finish(task.identity)
        return FinishNoted()

    def _note_full(self, problem: DiskFull) -> None:
        if not self._store_is_full:
            self._notices.say(
                f"{problem.one_line()} Devices keep their samples and try again every {RETRY_WHEN_FULL_S:g} s."
            )
        self._store_is_full = True

    def grant(self, identity: bytes, session: Session, now_s: float) -> int:
        """What a device may have in flight from now on."""
        granted = self._gate.credit_bytes(session, self._credit_bytes, now_s=now_s)
        self._connections.granted(identity, granted)
        return granted

    def traffic_of(self, session: Session) -> Traffic:
        """Counters of a device, written down with what is durable next."""
        return self._traffic.setdefault(session.outbox, Traffic())

    def flush(self, now_s: float) -> None:
        """Write down traffic that is not in the store yet; when it is full, later."""
        if not self._traffic:
            return
        try:
            with self._store.commit():
                self._write_traffic(now_s)
        except DiskFull:
            return
        self._traffic.clear()

    def _write_traffic(self, now_s: float) -> None:
        for outbox, traffic in self._traffic.items():
            self._store.note_traffic(
                outbox=outbox,
                bytes_in=traffic.bytes_in,
                bytes_out=traffic.bytes_out,
                malformed=traffic.malformed,
                activity=traffic.activity,
                now_s=now_s,
            )


def _is_batch(step: Step) -> bool:
    return isinstance(step, Task) and isinstance(step.work, Batch)


def _refused(step: Step) -> Answer:
    if isinstance(step, Answer):
        return step
    return Answer(step.identity, refusal(RefusalCode.STORE_FULL, FULL_DETAIL, retry_after_s=RETRY_WHEN_FULL_S))
