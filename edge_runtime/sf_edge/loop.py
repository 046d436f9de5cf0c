"""The loop of `sf-edge run`: compute a row when nothing is to be read, there is room and the governor agrees, else wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, assert_never

from sf_contract.activations import pack
from sf_contract.errors import (
    DataError,
    MalformedMessage,
    NotAuthorised,
    RefusedByServer,
    ServerUnreachable,
    WrongServerKey,
)
from sf_contract.frames import decode, encode
from sf_contract.messages import Finished
from sf_edge.actions import Action, Connect, Disconnect, Send, Settle, Wait
from sf_edge.clock import Clock
from sf_edge.governor.pace import Pace
from sf_edge.interrupts import Interrupts
from sf_edge.link.dealer import Link
from sf_edge.memory import IdleMemory
from sf_edge.outbox.queue import Outbox
from sf_edge.producer import NotFinite, Produced, Producer, Unusable
from sf_edge.progress import ProgressLine, Say, SkipNotices, WaitNotices, readable_bytes
from sf_edge.session import BATCH_SAMPLES, Session, State
from sf_edge.sources import Source, Taken

COMMIT_ROWS: Final = 8
COMMIT_AFTER_S: Final = 0.5
LONGEST_WAIT_S: Final = 10.0
IDLE_NOTICE_INTERVAL_S: Final = 600.0
MESSAGES_PER_TURN: Final = 64
LONGEST_REASON: Final = 256


@dataclass(frozen=True, slots=True)
class Work:
    """What the loop works with.

    Attributes:
        bundle_id: the bundle that makes and describes the samples.
        device: this device's name.
        data: what the rows are read from, for messages.
        largest_sample_bytes: payload bytes a sample may have; the outbox must have room for it before a row is computed.
    """

    bundle_id: str
    device: str
    data: str
    largest_sample_bytes: int
    source: Source
    producer: Producer
    outbox: Outbox
    session: Session
    link: Link
    pace: Pace


class EdgeLoop:
    """Runs until the server has noted the end, or a signal came."""

    def __init__(self, work: Work, *, clock: Clock, say: Say) -> None:
        self._work = work
        self._source = work.source
        self._outbox = work.outbox
        self._session = work.session
        self._link = work.link
        self._pace = work.pace
        self._clock = clock
        self._say = say
        self._totals = _Totals(work, clock)
        self._held: Taken | None = None
        self._uncommitted_rows = 0
        self._uncommitted_since_s = 0.0
        self._full_since_s: float | None = None
        self._idle_since_s: float | None = None
        self._skips = SkipNotices(say, where=work.data)
        self._progress = ProgressLine(say, device=work.device, now_s=clock.now_s())
        self._server_notices = WaitNotices(say)
        self._room_notices = WaitNotices(say)
        self._idle_notices = WaitNotices(say, every_s=IDLE_NOTICE_INTERVAL_S)
        self._memory = IdleMemory()

    def run(self, interrupts: Interrupts) -> None:
        """Work until everything is acknowledged and noted, or a signal came; what was computed is then committed.

        Raises:
            DataError: the data file cannot be read, has changed, or holds nothing usable.
            DiskFull: no room for the outbox; what was committed is safe.
            RefusedByServer: the server said no for good.
            ServerUnreachable: nobody answered for too long.
            NotAuthorised, WrongServerKey: the same, and why is known.
        """
        try:
            while interrupts.received is None and self._session.state is not State.FINISHED:
                self._turn(interrupts.wake_descriptor)
        except (DataError, NotAuthorised, RefusedByServer, ServerUnreachable, WrongServerKey):
            self._commit()
            raise
        finally:
            self._skips.close()
        self._commit()

    def _turn(self, wake_descriptor: int | None) -> None:
        self._receive()
        self._pace.look()
        now_s, waiting_samples = self._clock.now_s(), self._outbox.waiting_samples
        self._perform(self._session.tick(now_s, waiting_samples=waiting_samples, activity=self._pace.activity()))
        has_computed = self._compute_row()
        self._commit_if_due(is_idle=not has_computed and not self._is_resting)
        has_sent = self._send_batch()
        self._finish_if_done()
        self._tell()
        if not has_computed and not has_sent and self._session.state is not State.FINISHED:
            self._link.wait(self._wait_s(), wake_descriptors=self._wake_descriptors(wake_descriptor))

    def _receive(self) -> None:
        for event in self._link.events():
            waiting_samples = self._outbox.waiting_samples
            self._perform(self._session.link_changed(event, self._clock.now_s(), waiting_samples=waiting_samples))
        for _ in range(MESSAGES_PER_TURN):
            frames = self._link.receive()
            if frames is None:
                return
            try:
                message = decode(frames).message
            except MalformedMessage as problem:
                self._note_undecodable(problem)
                continue
            self._perform(self._session.receive(message, self._clock.now_s()))

    def _note_undecodable(self, problem: MalformedMessage) -> None:
        self._outbox.counters.undecodable_messages += 1
        if self._outbox.counters.undecodable_messages == 1:
            self._say(f"a message from the server was dropped: {problem.what}")

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect():
                    self._link.connect()
                case Disconnect():
                    self._link.disconnect()
                case Send(message):
                    self._link.send(encode(message))
                case Settle(verdicts):
                    self._outbox.settle(verdicts)
                case _:
                    assert_never(action)

    def _compute_row(self) -> bool:
        """Take one row and compute its sample; False when there is no row, no room, or the governor holds the row back.

        A row that is held back was taken all the same: only so a paused device learns that its file is at its end.
        """
        if not self._outbox.has_room(self._work.largest_sample_bytes):
            self._full_since_s = self._earlier(self._full_since_s)
            return False
        self._full_since_s = None
        self._held = self._held or self._source.take()
        if self._held is None:
            self._idle_since_s = self._earlier(self._idle_since_s)
            return False
        self._idle_since_s = None
        if not self._pace.may_compute():
            return False
        taken, self._held = self._held, None
        self._add(taken)
        return True

    def _earlier(self, since_s: float | None) -> float:
        return self._clock.now_s() if since_s is None else since_s

    def _add(self, taken: Taken) -> None:
        if self._uncommitted_rows == 0:
            self._uncommitted_since_s = self._clock.now_s()
        self._uncommitted_rows += 1
        counters = self._outbox.counters
        counters.rows += 1
        made = self._work.producer.produce(taken.row, ordinal=self._outbox.next_ordinal)
        match made:
            case Produced(sample, was_cut):
                counters.forward_passes += 1
                counters.samples += 1
                counters.cut += was_cut
                self._outbox.append(sample, taken.position)
            case NotFinite(reason):
                counters.forward_passes += 1
                counters.not_finite += 1
                self._outbox.set_row_aside(taken.position, code="not-finite", detail=reason)
                self._skip(taken, reason)
            case Unusable(reason):
                self._outbox.skip(taken.position)
                self._skip(taken, reason)
            case _:
                assert_never(made)

    def _skip(self, taken: Taken, reason: str) -> None:
        self._outbox.counters.skipped += 1
        self._skips.note(taken.row.line, reason[:LONGEST_REASON], where=taken.where)

    def _commit_if_due(self, *, is_idle: bool) -> None:
        age_s = self._clock.now_s() - self._uncommitted_since_s
        is_group_full = self._uncommitted_rows >= COMMIT_ROWS or (
            self._uncommitted_rows > 0 and age_s >= COMMIT_AFTER_S
        )
        if self._outbox.is_changed and (is_idle or is_group_full):
            self._commit()

    def _commit(self) -> None:
        """Until there is a first sample nothing is kept, so that a file without a usable row can be corrected."""
        if self._outbox.counters.samples == 0:
            return
        self._totals.update()
        self._outbox.commit()
        self._uncommitted_rows = 0

    def _send_batch(self) -> bool:
        """Send one batch if the session allows; its samples are marked as sent, durably, before they go."""
        if self._session.state is not State.WELCOMED:
            return False
        offers = self._outbox.offers(after=self._session.sent_through, limit=BATCH_SAMPLES)
        ordinals = self._session.choose(offers, self._clock.now_s())
        if not ordinals:
            return False
        first_times = self._outbox.mark_sent(ordinals)
        self._outbox.counters.uploaded_samples += first_times
        self._outbox.counters.resent_samples += len(ordinals) - first_times
        self._commit()
        message, buffers = pack(self._work.bundle_id, self._outbox.load(ordinals))
        self._link.send(encode(message, buffers))
        return True

    def _finish_if_done(self) -> None:
        if not self._source.exhausted or self._held is not None:
            return
        counters = self._outbox.counters
        if counters.samples == 0:
            raise DataError(
                f"{self._work.data} holds nothing usable: all {counters.rows} rows were skipped",
                cure=f"{self._work.producer.cure} and start again",
            )
        if self._outbox.waiting_samples == 0:
            totals = Finished(samples=counters.samples, rejected=counters.rejected, skipped_rows=counters.skipped)
            self._perform(self._session.finish(totals, self._clock.now_s()))

    def _tell(self) -> None:
        now_s = self._clock.now_s()
        self._totals.update()
        self._progress.note(self._outbox.counters, self._outbox.waiting_samples, now_s)
        self._server_notices.note(self._session.wait(), now_s)
        room = f"room in the outbox, which holds {readable_bytes(self._outbox.waiting_bytes)}"
        self._room_notices.note(_wait(room, self._full_since_s), now_s)
        self._pace.tell(has_work=self._held is not None and self._full_since_s is None)
        self._memory.look(self._idle_since_s, now_s)
        if not self._source.exhausted:
            self._idle_notices.note(_wait(self._source.waits_for, self._idle_since_s), now_s)

    def _wake_descriptors(self, interrupts: int | None) -> list[int]:
        """The source's own one only while a row is missing: what nobody reads stays readable, and would end every wait."""
        lacks_row = self._full_since_s is None and self._held is None and not self._source.exhausted
        source = self._source.wake_descriptor if lacks_row else None
        return [descriptor for descriptor in (interrupts, source) if descriptor is not None]

    @property
    def _is_resting(self) -> bool:
        """True between two rows of a device that may only use a share of its processor: no time to sync the disk."""
        return self._held is not None and self._pace.is_resting

    def _wait_s(self) -> float:
        due_s = self._session.next_tick_s()
        if self._is_resting and self._uncommitted_rows > 0 and self._outbox.counters.samples > 0:
            due_s = min(due_s, self._uncommitted_since_s + COMMIT_AFTER_S)
        if self._full_since_s is None and self._held is not None:
            due_s = min(due_s, self._pace.due_s)
        elif self._full_since_s is None and not self._source.exhausted:
            due_s = min(due_s, self._source.next_look_s)
        return min(due_s - self._clock.now_s(), LONGEST_WAIT_S)


class _Totals:
    """Keeps the counters that are measured, not counted, up to date: bytes of the link, CPU time."""

    def __init__(self, work: Work, clock: Clock) -> None:
        self._counters = work.outbox.counters
        self._link = work.link
        self._cpu_s = clock.cpu_s
        self._bytes_up_before = self._counters.bytes_up
        self._bytes_down_before = self._counters.bytes_down
        self._cpu_s_before = self._counters.cpu_s

    def update(self) -> None:
        self._counters.bytes_up = self._bytes_up_before + self._link.bytes_up
        self._counters.bytes_down = self._bytes_down_before + self._link.bytes_down
        self._counters.cpu_s = self._cpu_s_before + self._cpu_s()


def _wait(what: str, since_s: float | None) -> Wait | None:
    return None if since_s is None else Wait(what=what, since_s=since_s)
