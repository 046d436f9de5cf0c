"""A simulated device: the real session of `sf-edge`, with samples that cost nothing. No sockets, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sf_bench.ingest.samples import Supply
from sf_contract import SOFTWARE
from sf_contract.errors import DataError
from sf_contract.frames import Buffer
from sf_contract.messages import PROTOCOL_VERSION, ActivationBatch, AnyMessage, Hello, Rejected, Stored
from sf_edge.actions import Send, Settle
from sf_edge.session import BATCH_BYTES, BATCH_SAMPLES, Session, State, Terms

Message = tuple[AnyMessage, tuple[Buffer, ...]]


class Making(Protocol):
    """How a device comes by its samples. Times are seconds after its start."""

    @property
    def in_flight_bytes(self) -> int:
        """Payload it keeps under way at most, besides the server's credit."""
        ...

    @property
    def is_endless(self) -> bool:
        """True when there is always another one."""
        ...

    def made(self, passed_s: float) -> float:
        """Samples made so far, the last one perhaps in part."""
        ...

    def made_s(self, ordinal: int) -> float:
        """When a sample is there."""
        ...

    def next_s(self, passed_s: float) -> float | None:
        """When the first sample after those of now is made; None when none will be by the passing of time."""
        ...


@dataclass(frozen=True, slots=True)
class Demand:
    """What a device wants to send.

    Attributes:
        in_flight_bytes: payload it keeps under way at most, besides the server's credit.
        samples_per_s: samples that it makes, evenly in time; None: there is always another one.
        phase_s: seconds after the start at which it makes its first.
        most: samples altogether; None: it never ends.
    """

    in_flight_bytes: int
    samples_per_s: float | None = None
    phase_s: float = 0.0
    most: int | None = None

    @property
    def is_endless(self) -> bool:
        """True when there is always another one."""
        return self.samples_per_s is None

    def made(self, passed_s: float) -> float:
        """Samples made so many seconds after the start, the last one perhaps in part."""
        if self.samples_per_s is None:
            return float("inf")
        made = max(0.0, (passed_s - self.phase_s) * self.samples_per_s)
        return made if self.most is None else min(made, self.most)

    def made_s(self, ordinal: int) -> float:
        """Seconds after the start at which a sample is there."""
        return 0.0 if self.samples_per_s is None else self.phase_s + (ordinal + 1) / self.samples_per_s

    def next_s(self, passed_s: float) -> float | None:
        """When the first sample after those of now is made; None when there is always another one, or none will be."""
        made = self.made(passed_s)
        if self.samples_per_s is None or (self.most is not None and made >= self.most):
            return None
        return self.made_s(int(made))


@dataclass(frozen=True, slots=True)
class Settled:
    """Verdicts of one batch: when they came, whose they are, and how long they took.

    Attributes:
        waited_s: until the verdict, from when the batch was sent; where samples are made at a rate, from when its first
            sample was made, so that waiting for leave to send counts.
    """

    at_s: float
    device: int
    samples: int
    nbytes: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class _Offer:
    ordinal: int
    nbytes: int


class Device:
    """One device.

    Args:
        number: which device of the fleet.
        supply: its samples.
        now_s: the start; later times never decrease.

    Attributes:
        greetings: how often it said Hello; more than once means that an answer or the connection was lost.
        acknowledged: samples that are durable on the server.
        repeats: samples that it sent although the server had them.
    """

    def __init__(self, number: int, *, name: str, supply: Supply, demand: Making, now_s: float) -> None:
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            software=SOFTWARE,
            device=name,
            outbox=f"{number:032x}",
            bundle_id=supply.bundle_id,
            self_test_error=0.0,
            waiting_samples=1,
        )
        terms = Terms(hello=hello, address="simulated", give_up_after_s=0)
        self.number = number
        self.demand = demand
        self._supply = supply
        self._session = Session(terms, random=lambda: 0.5, now_s=now_s)
        self._began_s = now_s
        self._sent_s: dict[int, float] = {}
        self.greetings = 0
        self.acknowledged = 0
        self.repeats = 0

    @property
    def in_flight_bytes(self) -> int:
        """Payload without a verdict."""
        return self._session.in_flight_bytes

    @property
    def is_welcome(self) -> bool:
        """True once the server has answered."""
        return self._session.state is State.WELCOMED

    def begin(self, now_s: float) -> None:
        """From now on samples are made; none were made before."""
        self._began_s = now_s

    def tick(self, now_s: float) -> list[Message]:
        """Greetings and heartbeats that are due."""
        messages = [
            action.message for action in self._session.tick(now_s, waiting_samples=1) if isinstance(action, Send)
        ]
        self.greetings += sum(isinstance(message, Hello) for message in messages)
        return [(message, ()) for message in messages]

    def due_s(self) -> float:
        """When `tick` has to be called."""
        return self._session.next_tick_s()

    def next_sample_s(self, now_s: float) -> float | None:
        """When the first sample after those of now is made; None when there is always another one."""
        next_s = self.demand.next_s(now_s - self._began_s)
        return None if next_s is None else self._began_s + next_s

    def receive(self, message: AnyMessage, now_s: float) -> list[Settled]:
        """What the server's message settles.

        Raises:
            DataError: a sample was rejected, so something else is measured than was meant.
        """
        return [
            self._settle(action, now_s)
            for action in self._session.receive(message, now_s)
            if isinstance(action, Settle)
        ]

    def batch(self, now_s: float) -> tuple[ActivationBatch, tuple[Buffer, ...]] | None:
        """The next batch; None when nothing may be sent, or there is nothing."""
        ordinals = self._session.choose(self._offers(now_s), now_s)
        if not ordinals:
            return None
        is_endless = self.demand.is_endless
        self._sent_s[ordinals[0]] = now_s if is_endless else self._began_s + self.demand.made_s(ordinals[0])
        return self._supply.batch(ordinals)

    def _offers(self, now_s: float) -> Iterator[_Offer]:
        first, nbytes = self._next(), self._supply.shape.nbytes
        room = (self.demand.in_flight_bytes - self._session.in_flight_bytes) // nbytes
        made = min(self.demand.made(now_s - self._began_s), first + largest_batch(nbytes))
        there = int(made) - first
        if self.demand.is_endless and room < there:
            return  # whole batches only, as a device has that is always behind
        for ordinal in range(first, first + max(0, min(there, room))):
            yield _Offer(ordinal, nbytes)

    def _next(self) -> int:
        return max(self._session.sent_through + 1, self.acknowledged)

    def _settle(self, settle: Settle, now_s: float) -> Settled:
        verdicts = settle.verdicts
        rejected = next((verdict for verdict in verdicts if isinstance(verdict, Rejected)), None)
        if rejected is not None:
            raise DataError(
                f"the server rejected a made-up sample: {rejected.detail}", cure="let nobody else use this server"
            )
        stored = sum(isinstance(verdict, Stored) for verdict in verdicts)
        self.repeats += len(verdicts) - stored
        self.acknowledged = max(self.acknowledged, verdicts[-1].ordinal + 1)
        sent_s = self._sent_s.pop(verdicts[0].ordinal, now_s)
        nbytes = stored * self._supply.shape.nbytes
        return Settled(at_s=now_s, device=self.number, samples=stored, nbytes=nbytes, waited_s=now_s - sent_s)


def largest_batch(sample_bytes: int) -> int:
    """Samples of a full batch, as `sf-edge` makes them."""
    return max(1, min(BATCH_SAMPLES, BATCH_BYTES // sample_bytes))


def shares(settled: Sequence[Settled], devices: Sequence[int]) -> list[int]:
    """Payload bytes of each of these devices."""
    by_device = dict.fromkeys(devices, 0)
    for one in settled:
        if one.device in by_device:
            by_device[one.device] += one.nbytes
    return list(by_device.values())
