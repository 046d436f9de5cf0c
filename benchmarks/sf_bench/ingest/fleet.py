"""Many simulated devices in one process and one ZeroMQ context: a DEALER socket each, and one wait for all of them.

`sf_edge.link.dealer.Link` has a context of its own, which is two threads; five hundred of them would be a thousand.
"""

from __future__ import annotations

import heapq
import resource
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

import zmq

from sf_bench.ingest.device import Device, Message, Settled
from sf_contract.errors import ServerUnreachable, UsageError
from sf_contract.frames import decode, encode
from sf_edge.link.security import LinkKeys

DESCRIPTORS_PER_DEVICE: Final = 2
"""A connection, and the one that wakes its socket's thread."""

OTHER_DESCRIPTORS: Final = 128

WELCOME_S: Final = 60.0
_TICK_S: Final = 0.5
_LONGEST_WAIT_S: Final = 0.05
_SHORTEST_WAIT_S: Final = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A device and its socket."""

    device: Device
    socket: zmq.Socket[bytes]

    def send(self, message: Message) -> None:
        """Hand a message to ZeroMQ; what is under way is bounded by the credit."""
        self.socket.send_multipart(encode(*message), zmq.NOBLOCK)

    def has_message(self) -> bool:
        """True when an answer has come; also lets ZeroMQ take note of what its other threads told it."""
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def receive(self, now_s: float) -> list[Settled]:
        """What the next answer settles."""
        return self.device.receive(decode(self.socket.recv_multipart(zmq.NOBLOCK)).message, now_s)


class Fleet:
    """Connected devices. Times are of `time.monotonic`.

    Args:
        keys: one pair for each device, in their order; empty: in the clear.
    """

    def __init__(self, address: str, devices: Sequence[Device], keys: Sequence[LinkKeys] = ()) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, max(1, len(devices)))  # unless told otherwise, ZeroMQ allows 1,023
        self._epoll = select.epoll()
        self._members: dict[int, Member] = {}
        self._ticked_s = float("-inf")
        self._settled: list[Settled] = []
        self._is_sending = False
        self._due: list[tuple[float, int]] = []
        try:
            for device in devices:
                self._join(device, address, keys[device.number] if keys else None)
        except BaseException:
            self.close()
            raise

    @property
    def devices(self) -> list[Device]:
        """In their order."""
        return [member.device for member in self._members.values()]

    def greet(self) -> float:
        """Wait until the server has welcomed everybody; seconds that took.

        Raises:
            ServerUnreachable: somebody waits after a minute.
        """
        began_s = time.monotonic()
        while not all(device.is_welcome for device in self.devices):
            if time.monotonic() - began_s > WELCOME_S:
                late = sum(not device.is_welcome for device in self.devices)
                raise ServerUnreachable(
                    f"{late} of {len(self._members)} simulated devices were not welcomed in {WELCOME_S:.0f} s",
                    cure="measure with fewer --devices, or on a quieter machine",
                )
            self._step(time.monotonic() + _LONGEST_WAIT_S)
        return time.monotonic() - began_s

    def begin(self) -> None:
        """Let everybody make and send samples."""
        now_s = time.monotonic()
        self._is_sending = True
        for descriptor, member in self._members.items():
            member.device.begin(now_s)
            self._serve(member)
            self._note_due(descriptor, now_s)

    def wake(self) -> None:
        """Let everybody send what was made without their noticing."""
        for member in self._members.values():
            self._serve(member)

    def run(self, end_s: float, *, every_s: float, look: Callable[[], None]) -> list[Settled]:
        """Send and receive until `end_s`; what was settled meanwhile. `look` is called about every `every_s` seconds."""
        self._settled = []
        looked_s = float("-inf")
        while (now_s := time.monotonic()) < end_s:
            if now_s - looked_s >= every_s:
                look()
                looked_s = now_s
            self._step(end_s)
        settled, self._settled = self._settled, []
        return settled

    def drain(self, *, patience_s: float) -> bool:
        """Make nothing more, and wait for the verdicts that are owed; False when some did not come."""
        self._is_sending = False
        end_s = time.monotonic() + patience_s
        while any(device.in_flight_bytes for device in self.devices):
            if time.monotonic() > end_s:
                return False
            self._step(time.monotonic() + _LONGEST_WAIT_S)
        return True

    def close(self) -> None:
        """Leave without a word."""
        for member in self._members.values():
            member.socket.close(linger=0)
        self._epoll.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _join(self, device: Device, address: str, keys: LinkKeys | None) -> None:
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.SNDHWM, 0)
        if keys is not None:
            dealer.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.raw)
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, keys.secret.public.raw)
            dealer.setsockopt(zmq.CURVE_SERVERKEY, keys.server.raw)
        descriptor = int(dealer.getsockopt(zmq.FD))
        self._members[descriptor] = Member(device, dealer)
        try:
            dealer.connect(address)
        except zmq.ZMQError as problem:
            raise UsageError(f"{address} cannot be connected to: {problem.strerror}", cure="correct it") from problem
        self._epoll.register(descriptor, select.EPOLLIN)

    def _step(self, end_s: float) -> None:
        now_s = time.monotonic()
        self._tick(now_s)
        self._serve_due(now_s)
        due_s = self._due[0][0] if self._due else end_s
        wait_s = min(end_s, due_s, self._ticked_s + _TICK_S) - time.monotonic()
        for descriptor, _ in self._epoll.poll(max(0.0, wait_s), max(1, len(self._members))):
            self._serve(self._members[descriptor])

    def _tick(self, now_s: float) -> None:
        if now_s - self._ticked_s < _TICK_S:
            return
        self._ticked_s = now_s
        for member in self._members.values():
            if member.device.due_s() <= now_s:
                for message in member.device.tick(now_s):
                    member.send(message)
                self._serve(member)

    def _serve_due(self, now_s: float) -> None:
        """Send samples that were made meanwhile."""
        while self._due and self._due[0][0] <= now_s:
            _, descriptor = heapq.heappop(self._due)
            self._serve(self._members[descriptor])
            self._note_due(descriptor, now_s)

    def _note_due(self, descriptor: int, now_s: float) -> None:
        next_s = self._members[descriptor].device.next_sample_s(now_s)
        if next_s is not None:
            heapq.heappush(self._due, (max(next_s, now_s + _SHORTEST_WAIT_S), descriptor))

    def _serve(self, member: Member) -> None:
        """Receive and send until there is nothing to do; sending may find an answer that no wait would tell of again."""
        is_busy = True
        while is_busy:
            is_busy = False
            while member.has_message():
                self._settled += member.receive(time.monotonic())
                is_busy = True
            while self._is_sending and (batch := member.device.batch(time.monotonic())) is not None:
                member.send(batch)
                is_busy = True


def allow_descriptors(devices: int) -> None:
    """Raise this process's soft limit of open files, so that so many simulated devices fit.

    Raises:
        UsageError: the system's hard limit is too low.
    """
    wanted = DESCRIPTORS_PER_DEVICE * devices + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise UsageError(
            f"{devices} simulated devices need {wanted} open files, the system allows {hard}",
            cure="raise it with ulimit -Hn, or measure with fewer --devices",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
