"""Strangers and hostile devices against a real ingest process: memory, connections and the others stay as they are."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import zmq

from sf_contract.frames import encode
from sf_contract.limits import MIB
from sf_contract.link_keys import new_link_key
from sf_contract.messages import Ack, Ping, Refusal, RefusalCode, Welcome
from sf_edge.link.events import LinkEvent

from .conftest import PATIENCE_S, eventually

GREETING = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + b"\0" * 32


def dial(address: str) -> socket.socket:
    host, port = address.removeprefix("tcp://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    connection.settimeout(PATIENCE_S)
    return connection


def ends(connection: socket.socket) -> bool:
    """The other side hangs up."""
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def long_command(nbytes: int) -> bytes:
    """A ZMTP command frame that announces so many bytes."""
    return b"\x06" + struct.pack(">Q", nbytes)


@pytest.fixture
def strangers() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for connection in opened:
        connection.close()


@pytest.fixture
def phone(server, connect, key):
    """A device that is connected and works."""
    server.start(max_connections=40)
    server.authorize(key, "phone")
    server.wait_for("authorized devices: 1")
    device = connect("phone", key=key)
    assert isinstance(device.contact().answer, Welcome)
    return device


@pytest.mark.slow
def test_half_handshakes_and_silence_cost_next_to_nothing_and_end_by_themselves(server, phone, strangers) -> None:
    before = server.resident_bytes()
    for opening in (b"", b"\xff", GREETING[:12], GREETING, GREETING + b"\x04\xc8\x05HELLO"):
        for _ in range(4):
            strangers.append(dial(server.address))
            strangers[-1].sendall(opening)
    phone.send_samples(0)
    assert isinstance(phone.receive(), Ack)
    assert server.resident_bytes() - before < 8 * MIB
    assert all(ends(connection) for connection in strangers)


@pytest.mark.parametrize(
    "attack",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 1_000,
        bytes(range(256)) * 4_096,
        GREETING + long_command(2**63),
        GREETING + long_command(64 * MIB),
        GREETING + long_command(1 * MIB) + b"\0" * MIB,
        GREETING + b"\x04\xc8\x05HELLO" + b"\0" * 194,
        GREETING.replace(b"CURVE", b"NULL\0") + b"\x04\x19\x05READY" + b"\0" * 19,
        GREETING.replace(b"CURVE", b"PLAIN") + b"\x04\x0a\x05HELLO\x01a\x01b",
    ],
    ids=["http", "garbage", "endless", "oversize", "mebibyte", "false-hello", "null", "plain"],
)
def test_what_is_no_handshake_is_hung_up_on_and_nobody_else_notices(server, phone, strangers, attack) -> None:
    before = server.resident_bytes()
    for _ in range(8):
        strangers.append(dial(server.address))
        with contextlib.suppress(OSError):  # it may hang up in the middle
            strangers[-1].sendall(attack)
    assert all(ends(connection) for connection in strangers)
    phone.send_samples(0)
    assert isinstance(phone.receive(), Ack)
    assert server.resident_bytes() - before < 16 * MIB


def test_a_flood_of_connections_takes_no_more_than_its_share_and_a_device_still_comes_in(
    server, phone, connect, key, strangers
) -> None:
    for _ in range(200):
        strangers.append(dial(server.address))
    eventually(lambda: server.open_files() < 90, "connections beyond the limit are closed")
    phone.send_samples(0)
    assert isinstance(phone.receive(), Ack)
    assert isinstance(connect("phone", key=key).contact().answer, Welcome)


class Recorder:
    """A relay that keeps what the device sent."""

    def __init__(self, address: str) -> None:
        self.recorded = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._target = address
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def stop(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (*self._ends, self._listener):
            end.close()

    def _serve(self) -> None:
        device, _ = self._listener.accept()
        server = dial(self._target)
        self._ends += [device, server]
        self._threads.append(threading.Thread(target=self._copy, args=(server, device, False)))
        self._threads[-1].start()
        self._copy(device, server, True)

    def _copy(self, source: socket.socket, sink: socket.socket, keep: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if keep:
                    self.recorded += data
                sink.sendall(data)


def test_a_recorded_conversation_is_worth_nothing_a_second_time(server, connect, key, strangers) -> None:
    server.start()
    server.authorize(key, "pi")
    server.wait_for("authorized devices: 1")
    recorder = Recorder(server.address)
    try:
        device = connect("pi", key=key, address=recorder.address)
        assert isinstance(device.contact().answer, Welcome)
        device.send_samples(0)
        assert isinstance(device.receive(), Ack)
    finally:
        recorder.stop()
    assert b"batch" not in recorder.recorded
    assert len(recorder.recorded) > len(GREETING) + 500
    server.lines.clear()
    strangers.append(dial(server.address))
    strangers[0].sendall(recorder.recorded)
    assert ends(strangers[0])
    fresh = connect("pi", key=key)
    assert isinstance(fresh.contact().answer, Welcome)
    fresh.send_samples(0, 1)
    ack = fresh.receive()
    assert isinstance(ack, Ack)
    assert [type(verdict).__name__ for verdict in ack.verdicts] == ["AlreadyStored", "Stored"]


def curve_socket(context: zmq.Context, server, key, *, routing_id: bytes = b"") -> zmq.Socket:
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.curve_secretkey, dealer.curve_publickey = key.raw, key.public.raw
    dealer.curve_serverkey = server.key.public.raw
    if routing_id:
        dealer.routing_id = routing_id
    dealer.connect(server.address)
    return dealer


def test_a_connection_cannot_be_taken_over_by_choosing_its_routing_id(server, connect, key) -> None:
    thief = new_link_key()
    server.start()
    server.authorize(key, "pi")
    server.authorize(thief, "thief")
    server.wait_for("authorized devices: 2")
    hello = connect("pi", key=key).hello()
    files = server.open_files()
    with zmq.Context() as context:
        with curve_socket(context, server, key, routing_id=b"mine") as victim:
            victim.send_multipart(encode(hello))
            assert victim.poll(int(PATIENCE_S * 1000))
        eventually(lambda: server.open_files() <= files, "the first connection is gone")
        with curve_socket(context, server, thief, routing_id=b"mine") as other:
            for message, answer in ((Ping(), b"hello-first"), (hello, b"may only be used by thief")):
                other.send_multipart(encode(message))
                assert other.poll(int(PATIENCE_S * 1000))
                assert answer in other.recv_multipart()[1]


def test_a_key_keeps_its_four_newest_connections(server, connect, key) -> None:
    server.start()
    server.authorize(key, "pi")
    server.wait_for("authorized devices: 1")
    devices = [connect("pi", key=key) for _ in range(6)]
    for device in devices:
        assert isinstance(device.contact().answer, Welcome)
    for device in devices[:2]:
        device.wait_for_event(LinkEvent.DOWN)
    assert isinstance(devices[-1].contact().answer, Welcome)


def in_the_clear(address: str) -> socket.socket:
    """A raw connection that has done the handshake without encryption; who sends messages before its end is turned away."""
    connection = dial(address)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    connection.sendall(GREETING.replace(b"CURVE", b"NULL\0") + b"\x04" + bytes([len(ready)]) + ready)
    wait_for(connection, b"READY")
    return connection


def wait_for(connection: socket.socket, wanted: bytes) -> None:
    """Read until these bytes have come."""
    found = b""
    while wanted not in found:
        received = connection.recv(4_096)
        assert received, f"the other side hung up after {found!r}"
        found += received


def part(content: bytes, *, more: bool) -> bytes:
    """One frame of a message as it is on the wire."""
    return bytes([2 | more]) + struct.pack(">Q", len(content)) + content


@pytest.mark.parametrize("greets", [True, False])
def test_a_message_without_an_end_is_cut_off_before_it_fills_the_memory(server, connect, strangers, greets) -> None:
    server.start(authorized=None, credit_bytes=64 * 1024)
    strangers.append(in_the_clear(server.address))
    if greets:
        first, second = map(bytes, encode(connect(in_the_clear=True).hello()))
        strangers[0].sendall(part(first, more=True) + part(second, more=False))
        wait_for(strangers[0], b"welcome")
    before, peak = server.resident_bytes(), 0
    endless = part(os.urandom(MIB // 2), more=True)
    with contextlib.suppress(OSError):
        for _ in range(2_000):  # a gigabyte, in parts that the limit for frames allows
            strangers[0].sendall(endless)
            peak = max(peak, server.resident_bytes() - before)
        raise AssertionError("a gigabyte was taken in")
    assert peak < 400 * MIB
    server.wait_for("bytes that make no message" if greets else "bytes and no message")
    assert isinstance(connect("other", in_the_clear=True).contact().answer, Welcome)


def test_a_device_over_its_rate_waits_for_grants_while_others_go_on(server, connect, key) -> None:
    other = new_link_key()
    server.start(device_mb_per_s=0.05)
    server.authorize(key, "pi")
    server.authorize(other, "phone")
    server.wait_for("authorized devices: 2")
    device = connect("pi", key=key)
    welcome = device.contact().answer
    assert isinstance(welcome, Welcome)
    assert welcome.credit_bytes <= 65_536
    device.send_samples(*range(140), tokens=16)
    ack = device.receive()
    assert isinstance(ack, Ack)
    assert ack.credit_bytes == 0
    neighbour = connect("phone", key=other)
    assert isinstance(neighbour.contact().answer, Welcome)
    neighbour.send_samples(0)
    assert isinstance(neighbour.receive(), Ack)
    grant = device.receive()
    assert isinstance(grant, Welcome)
    assert grant.credit_bytes > 0


def test_a_device_that_ignores_its_rate_is_refused_with_a_delay(server, connect, key) -> None:
    server.start(device_mb_per_s=0.01)
    server.authorize(key, "pi")
    server.wait_for("authorized devices: 1")
    device = connect("pi", key=key)
    assert isinstance(device.contact().answer, Welcome)
    for first in range(0, 600, 200):
        device.send_samples(*range(first, first + 200), tokens=16)
    answers = [device.receive() for _ in range(3)]
    refusals = [answer for answer in answers if isinstance(answer, Refusal)]
    assert refusals
    assert all(refusal.code is RefusalCode.OVER_CREDIT and refusal.retry_after_s for refusal in refusals)
