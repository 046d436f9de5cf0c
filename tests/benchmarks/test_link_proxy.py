"""The emulated link: what each action does to the bytes of a connection, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from sf_bench.link_connection import CHUNK_BYTES
from sf_bench.link_proxy import LinkProxy, main
from sf_bench.link_script import (
    BOTH,
    LAN,
    MOBILE,
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
    LinkProfile,
    Reorder,
    Silence,
    Step,
    Truncate,
    draw_action,
    draw_script,
    flip_bits,
)

UP, DOWN = Direction.UP, Direction.DOWN
PATIENCE_S = 20.0

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Ends:
    """A proxy with a server behind it."""

    def __init__(self, proxy: LinkProxy, port: int, arrivals: asyncio.Queue[Stream]) -> None:
        self.proxy = proxy
        self.port = port
        self._arrivals = arrivals
        self._streams: list[Stream] = []

    async def connect(self) -> tuple[Stream, Stream]:
        """A connection as the device and as the server have it."""
        known = len(self.proxy.connections)
        device = await asyncio.open_connection("127.0.0.1", self.port)
        server = await self._arrivals.get()
        while len(self.proxy.connections) == known:  # the server may know of it before the proxy does
            await asyncio.sleep(0)
        self._streams += [device, server]
        return device, server

    async def close(self) -> None:
        """Close what was connected."""
        for _, writer in self._streams:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def ends(profile: LinkProfile = PROFILES["loopback"]) -> AsyncIterator[Ends]:
    arrivals: asyncio.Queue[Stream] = asyncio.Queue()
    server = await asyncio.start_server(lambda *stream: arrivals.put_nowait(stream), "127.0.0.1", 0)
    proxy = LinkProxy("127.0.0.1", server.sockets[0].getsockname()[1], profile=profile, seed=1)
    address = await proxy.start()
    both = Ends(proxy, int(address.rpartition(":")[2]), arrivals)
    try:
        yield both
    finally:
        await proxy.close()
        await both.close()
        server.close()


def over_a_link(test: Callable[[Ends], Awaitable[None]], profile: LinkProfile = PROFILES["loopback"]) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S), ends(profile) as both:
            await test(both)

    asyncio.run(run())


async def has_ended(stream: Stream) -> bool:
    """Wait for the end of a connection; False when bytes came instead."""
    try:
        return await stream[0].read(1) == b""
    except ConnectionError:
        return True


def test_bytes_pass_unchanged_in_both_directions_and_are_counted() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        sent = random.Random(1).randbytes(10 * CHUNK_BYTES + 7)
        device[1].write(sent)
        assert await server[0].readexactly(len(sent)) == sent
        server[1].write(sent[::-1])
        assert await device[0].readexactly(len(sent)) == sent[::-1]
        assert both.proxy.bytes_passed == {UP: len(sent), DOWN: len(sent)}
        device[1].close()
        assert await has_ended(server)

    over_a_link(test)


def test_delay_and_jitter_are_added_and_order_is_kept() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        sent = random.Random(2).randbytes(8 * CHUNK_BYTES)
        device[1].write(sent)
        assert await server[0].readexactly(len(sent)) == sent
        assert loop.time() - sent_s >= 0.05

    over_a_link(test, LinkProfile("far", delay_s=0.05, jitter_s=0.05))


def test_the_capacity_is_shared_by_all_connections_of_a_direction() -> None:
    async def test(both: Ends) -> None:
        connections = [await both.connect() for _ in range(2)]
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        for device, _ in connections:
            device[1].write(bytes(10_000))
        for _, server in connections:
            await server[0].readexactly(10_000)
        assert loop.time() - sent_s >= 20_000 / 100_000

    over_a_link(test, LinkProfile("narrow", bytes_per_s=100_000))


def test_a_lost_packet_is_a_stall() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        both.proxy.apply(Become(LinkProfile("lossy", stalls=1.0, stall_s=0.2)))
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        device[1].write(b"lost first, then sent again")
        assert await server[0].readexactly(27) == b"lost first, then sent again"
        assert loop.time() - sent_s >= 0.2

    over_a_link(test)


def test_a_cut_ends_both_sides_and_a_new_connection_works() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        both.proxy.apply(Cut())
        assert await has_ended(device)
        assert await has_ended(server)
        device, server = await both.connect()
        device[1].write(b"again")
        assert await server[0].readexactly(5) == b"again"

    over_a_link(test)


@pytest.mark.parametrize("dead", [(UP,), (DOWN,), BOTH], ids=str)
def test_a_half_open_connection_swallows_bytes_and_stays_open(dead: tuple[Direction, ...]) -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        both.proxy.apply(HalfOpen(dead))
        device[1].write(b"up")
        server[1].write(b"down")
        for direction, reader, text in ((UP, server[0], b"up"), (DOWN, device[0], b"down")):
            if direction not in dead:
                assert await reader.readexactly(len(text)) == text
        newer, newer_server = await both.connect()
        newer[1].write(b"new")
        assert await newer_server[0].readexactly(3) == b"new"
        passed = both.proxy.bytes_passed
        assert passed == {UP: 3 + 2 * (UP not in dead), DOWN: 4 * (DOWN not in dead)}
        both.proxy.apply(Heal())
        assert await has_ended(device)
        assert await has_ended(server)

    over_a_link(test)


def test_the_server_of_a_half_open_connection_does_not_learn_that_the_device_has_left() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        both.proxy.apply(HalfOpen((UP,)))
        device[1].close()
        newer, newer_server = await both.connect()
        newer[1].close()
        assert await has_ended(newer_server)
        assert not server[0].at_eof()

    over_a_link(test)


def test_silence_holds_everything_until_it_heals() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        both.proxy.apply(Silence((UP,)))
        device[1].write(b"held")
        server[1].write(b"free")
        assert await device[0].readexactly(4) == b"free"
        assert both.proxy.bytes_passed[UP] == 0
        both.proxy.apply(Heal())
        assert await server[0].readexactly(4) == b"held"

    over_a_link(test)


CHUNKS = [bytes([number]) * 100 for number in range(3)]


@pytest.mark.parametrize(
    ("action", "arrives"),
    [(Drop(UP), [1]), (Duplicate(UP), [0, 0, 1]), (Reorder(UP), [1, 0])],
    ids=["drop", "duplicate", "reorder"],
)
def test_the_next_chunk_is_dropped_repeated_or_passes_later(
    action: Drop | Duplicate | Reorder, arrives: list[int]
) -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        has_happened = both.proxy.apply(action)
        assert not has_happened.is_set()
        device[1].write(CHUNKS[0])
        await has_happened.wait()
        device[1].write(CHUNKS[1])
        expected = b"".join(CHUNKS[number] for number in arrives)
        assert await server[0].readexactly(len(expected)) == expected

    over_a_link(test)


def test_a_truncated_chunk_arrives_in_part_and_ends_the_connection() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        both.proxy.apply(Truncate(DOWN, part=0.25))
        server[1].write(CHUNKS[1])
        assert await device[0].read() == CHUNKS[1][:25]
        assert await has_ended(server)

    over_a_link(test, LinkProfile("far", delay_s=0.02))


def test_a_corrupted_chunk_differs_in_as_many_bits_as_asked_for() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        both.proxy.apply(Corrupt(UP, flips=5, seed=3))
        device[1].write(CHUNKS[1] + CHUNKS[2])
        found = await server[0].readexactly(200)
        differing = int.from_bytes(found, "big") ^ int.from_bytes(CHUNKS[1] + CHUNKS[2], "big")
        assert differing.bit_count() == 5

    over_a_link(test)


def test_a_script_is_played_in_its_order() -> None:
    async def test(both: Ends) -> None:
        device, server = await both.connect()
        await both.proxy.play((Step(0.0, Silence(BOTH)), Step(0.01, Heal()), Step(0.02, Cut())))
        assert await has_ended(device)
        assert await has_ended(server)

    over_a_link(test)


def test_a_device_is_reset_when_the_server_is_not_there() -> None:
    async def run() -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            proxy = LinkProxy("127.0.0.1", nobody.getsockname()[1])
            address = await proxy.start()
            device = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
            assert await has_ended(device)
            device[1].close()
            await proxy.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_the_same_seed_draws_the_same_script_and_another_one_another() -> None:
    script = draw_script(7, steps=200, duration_s=60)
    assert script == draw_script(7, steps=200, duration_s=60)
    assert script != draw_script(8, steps=200, duration_s=60)
    assert [step.at_s for step in script] == sorted(step.at_s for step in script)
    assert all(0 <= step.at_s <= 60 for step in script)
    assert {type(step.action) for step in script} == {
        type(draw_action(kind, random.Random(0))) for kind in Kind
    } == {Become, Cut, HalfOpen, Truncate, Drop, Duplicate, Reorder, Corrupt}  # fmt: skip


def test_flipping_bits_changes_exactly_that_many() -> None:
    flipped = flip_bits(bytes(64), flips=9, seed=1)
    assert int.from_bytes(flipped, "big").bit_count() == 9
    assert flip_bits(b"\x00", flips=99, seed=1) == b"\xff"
    assert flip_bits(b"", flips=1, seed=1) == b""


def test_the_profiles_have_the_round_trips_and_capacities_of_their_names() -> None:
    assert set(PROFILES) == {"loopback", "lan", "home", "mobile"}
    assert MOBILE.bytes_per_s * 8 == 3e6
    assert MOBILE.delay_s * 2 == 0.060
    assert LAN.bytes_per_s * 8 == 1e9


def test_a_wrong_server_address_is_one_line_with_a_cure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "0", "--to", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert "nowhere" in said
    assert "Cure:" in said
