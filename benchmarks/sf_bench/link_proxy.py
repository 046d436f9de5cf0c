"""A TCP proxy that is a bad link: between devices and the server it delays, limits, cuts, half-opens, truncates and corrupts.

python -m sf_bench.link_proxy --listen 6555 --to 127.0.0.1:5555 --profile mobile
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Sequence
from typing import Final, assert_never

from sf_bench.link_connection import CHUNK_BYTES, LinkConnection, LinkState, reset
from sf_bench.link_script import (
    HARMLESS_IN_THE_CLEAR,
    LOOPBACK,
    PROFILES,
    Become,
    Corrupt,
    Cut,
    Direction,
    Drop,
    Duplicate,
    HalfOpen,
    Heal,
    Kind,
    LinkAction,
    LinkProfile,
    Reorder,
    Silence,
    Step,
    Truncate,
    draw_script,
)
from sf_contract.command import ArgumentParser, run_command, say
from sf_contract.errors import UsageError


class LinkProxy:
    """Forwards TCP connections to one address; make and use it inside one event loop.

    Args:
        host: of the server.
        port: of the server. It may be changed later; new connections then go to the new one.
        profile: how the link behaves at first.
        seed: of jitter and stalls.

    Attributes:
        connections: connections that are open now.
    """

    def __init__(self, host: str, port: int, *, profile: LinkProfile = LOOPBACK, seed: int = 0) -> None:
        self.host = host
        self.port = port
        self.connections: set[LinkConnection] = set()
        self._link = LinkState(profile, seed=seed)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def bytes_passed(self) -> dict[Direction, int]:
        """Bytes handed on so far."""
        return dict(self._link.bytes_passed)

    async def start(self, *, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; the address for devices, as ZeroMQ writes it."""
        self._server = await asyncio.start_server(self._accept, host, port)
        bound: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return f"tcp://{bound[0]}:{bound[1]}"

    async def close(self) -> None:
        """Reset every connection and stop listening."""
        if self._server is not None:
            self._server.close()
        while self._tasks:
            _reset_all(self.connections)
            await asyncio.wait(self._tasks, timeout=0.1)

    def apply(self, action: LinkAction) -> asyncio.Event:
        """Do something to the link. The event is set once it has happened: at once, or with the next chunk."""
        match action:
            case Drop() | Duplicate() | Reorder() | Truncate() | Corrupt():
                return self._link.await_chunk(action)
            case Become(profile):
                self._link.profile = profile
            case Cut():
                _reset_all(self.connections)
            case HalfOpen(directions):
                for connection in self.connections:
                    connection.dead.update(directions)
            case Silence(directions):
                for direction in directions:
                    self._link.gates[direction].clear()
            case Heal():
                self._heal()
            case _:
                assert_never(action)
        has_happened = asyncio.Event()
        has_happened.set()
        return has_happened

    async def play(self, script: Sequence[Step]) -> None:
        """Do what the script says, when it says so."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        for step in script:
            await asyncio.sleep(started_s + step.at_s - loop.time())
            self.apply(step.action)

    def _heal(self) -> None:
        for gate in self._link.gates.values():
            gate.set()
        _reset_all(connection for connection in self.connections if connection.dead)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            upstream = await asyncio.open_connection(self.host, self.port, limit=CHUNK_BYTES)
        except OSError:
            reset(writer)
            return
        connection = LinkConnection(self._link, device=(reader, writer), server=upstream)
        self.connections.add(connection)
        try:
            await connection.forward()
        finally:
            self.connections.discard(connection)


def _reset_all(connections: Iterable[LinkConnection]) -> None:
    for connection in tuple(connections):
        connection.reset()


_EXAMPLES: Final = """\
examples:
  python -m sf_bench.link_proxy --listen 6555 --to 127.0.0.1:5555 --profile mobile
  python -m sf_bench.link_proxy --listen 6555 --to 127.0.0.1:5555 --faults 100 --over-s 600 --seed 7

Devices then use --server tcp://127.0.0.1:6555."""


def main(argv: Sequence[str] | None = None) -> int:
    """Be a bad link until interrupted."""
    return run_command("sf_bench.link_proxy", _command, argv)


def _command(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m sf_bench.link_proxy", description="A TCP proxy that is a bad link.", epilog=_EXAMPLES
    )
    parser.add_argument("--listen", type=int, required=True, metavar="PORT", help="port on this machine, for devices")
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="the server")
    parser.add_argument("--profile", choices=list(PROFILES), default="loopback", help="delay, jitter, capacity, stalls")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="draw so many faults")
    parser.add_argument(
        "--tamper", action="store_true", help="draw faults that change bytes too; only an encrypted link notices them"
    )
    parser.add_argument("--over-s", type=float, default=60.0, metavar="S", help="seconds over which they are spread")
    parser.add_argument("--seed", type=int, default=0, help="of faults, jitter and stalls")
    options = parser.parse_args(arguments)
    asyncio.run(_serve(options))
    return 0


async def _serve(options: argparse.Namespace) -> None:
    host, _, port = options.to.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--to {options.to!r} is not HOST:PORT", cure="give one like 127.0.0.1:5555")
    profile = PROFILES[options.profile]
    proxy = LinkProxy(host, int(port), profile=profile, seed=options.seed)
    address = await proxy.start(port=options.listen)
    say(f"{address} -> {options.to}: {profile.name}, {options.faults} faults")
    try:
        await proxy.play(_script(options))
        await asyncio.Event().wait()
    finally:
        await proxy.close()


def _script(options: argparse.Namespace) -> tuple[Step, ...]:
    kinds = tuple(Kind) if "tamper" in options else HARMLESS_IN_THE_CLEAR
    return draw_script(options.seed, steps=options.faults, duration_s=options.over_s, kinds=kinds)


if __name__ == "__main__":
    sys.exit(main())
