"""One TCP connection on its way over an emulated link, and the state of that link, which all its connections share."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from typing import Final

from sf_bench.link_script import (
    ChunkAction,
    Corrupt,
    Direction,
    Drop,
    Duplicate,
    LinkProfile,
    Reorder,
    Truncate,
    flip_bits,
)

CHUNK_BYTES: Final = 4096
CHUNKS_UNDER_WAY: Final = 64
"""Of one connection and direction; a sender that is ahead of the link by more has to wait."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class LinkState:
    """What a link does to the chunks on it.

    Attributes:
        profile: how it behaves now.
        gates: a direction whose gate is not set lets nothing pass.
        bytes_passed: bytes handed on, by direction.
    """

    def __init__(self, profile: LinkProfile, *, seed: int) -> None:
        self.profile = profile
        self.gates = {direction: asyncio.Event() for direction in Direction}
        self.bytes_passed = dict.fromkeys(Direction, 0)
        self._chance = random.Random(seed)
        self._due: dict[Direction, deque[tuple[ChunkAction, asyncio.Event]]] = {d: deque() for d in Direction}
        self._free_s = dict.fromkeys(Direction, 0.0)
        for gate in self.gates.values():
            gate.set()

    def await_chunk(self, action: ChunkAction) -> asyncio.Event:
        """Do this to the next chunk; the event is set when it was done."""
        was_done = asyncio.Event()
        self._due[action.direction].append((action, was_done))
        return was_done

    def due_action(self, direction: Direction) -> ChunkAction | None:
        """What has to happen to the chunk at hand; it counts as done."""
        if not self._due[direction]:
            return None
        action, was_done = self._due[direction].popleft()
        was_done.set()
        return action

    def arrival_s(self, direction: Direction, nbytes: int) -> float:
        """When a chunk that is sent now comes out at the other end, by the clock of the event loop."""
        now_s = asyncio.get_running_loop().time()
        profile, chance = self.profile, self._chance
        if profile.bytes_per_s:
            now_s = max(now_s, self._free_s[direction]) + nbytes / profile.bytes_per_s
            self._free_s[direction] = now_s
        stall_s = profile.stall_s if chance.random() < profile.stalls else 0.0
        return now_s + profile.delay_s + chance.uniform(0.0, profile.jitter_s) + stall_s


class LinkConnection:
    """A device's connection. Directions in `dead` swallow what comes, and pass no end of the connection either."""

    def __init__(self, link: LinkState, *, device: Stream, server: Stream) -> None:
        self.dead: set[Direction] = set()
        self._link = link
        self._readers = {Direction.UP: device[0], Direction.DOWN: server[0]}
        self._writers = {Direction.UP: server[1], Direction.DOWN: device[1]}
        self._under_way: dict[Direction, asyncio.Queue[tuple[float, bytes] | None]] = {
            direction: asyncio.Queue(CHUNKS_UNDER_WAY) for direction in Direction
        }
        self._truncated: set[Direction] = set()
        self._held = dict.fromkeys(Direction, b"")
        self._has_ended = asyncio.Event()

    async def forward(self) -> None:
        """Forward both directions until one of them ends, or the connection is reset."""
        jobs = [
            asyncio.ensure_future(job(direction)) for direction in Direction for job in (self._take_in, self._hand_on)
        ]
        try:
            await self._has_ended.wait()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            for writer in self._writers.values():
                writer.close()

    def reset(self) -> None:
        """End it on both sides; what is under way is lost."""
        for writer in self._writers.values():
            reset(writer)
        self._has_ended.set()

    async def _take_in(self, direction: Direction) -> None:
        reader, queue = self._readers[direction], self._under_way[direction]
        with contextlib.suppress(ConnectionError):
            while direction not in self._truncated and (chunk := await reader.read(CHUNK_BYTES)):
                for part in self._pass_through(direction, chunk):
                    await queue.put((self._link.arrival_s(direction, len(part)), part))
        await queue.put(None)

    async def _hand_on(self, direction: Direction) -> None:
        queue = self._under_way[direction]
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while (item := await queue.get()) is not None:
                due_s, chunk = item
                await asyncio.sleep(due_s - loop.time())
                await self._link.gates[direction].wait()
                self._writers[direction].write(chunk)
                await self._writers[direction].drain()
                self._link.bytes_passed[direction] += len(chunk)
        if direction not in self.dead:
            self._has_ended.set()

    def _pass_through(self, direction: Direction, chunk: bytes) -> tuple[bytes, ...]:
        """A chunk as it is handed on, in parts."""
        if direction in self.dead:
            return ()
        if held := self._held[direction]:
            self._held[direction] = b""
            return (chunk, held)
        action = self._link.due_action(direction)
        return (chunk,) if action is None else self._spoil(action, chunk)

    def _spoil(self, action: ChunkAction, chunk: bytes) -> tuple[bytes, ...]:
        match action:
            case Drop():
                return ()
            case Duplicate():
                return (chunk, chunk)
            case Corrupt(flips=flips, seed=seed):
                return (flip_bits(chunk, flips=flips, seed=seed),)
            case Reorder(direction):
                self._held[direction] = chunk
            case Truncate(direction, part):
                self._truncated.add(direction)
                return (chunk[: int(part * len(chunk))],)
        return ()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a TCP reset."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
