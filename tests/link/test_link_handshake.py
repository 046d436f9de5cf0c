"""Who comes in, who does not, and what both sides are told: real sockets over loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from sf_contract.link_keys import new_link_key
from sf_contract.messages import Ack, Refusal, RefusalCode, Welcome
from sf_edge.link.events import LinkEvent, describe
from sf_edge.link.greeting import Greeting, ask_greeting

from .conftest import PATIENCE_S

MISMATCH = {LinkEvent.OTHER_MECHANISM, LinkEvent.DROPPED}
"""When one side encrypts and the other does not, whoever notices first hangs up, and the other side sees only that."""


def test_a_device_whose_key_is_in_the_folder_is_welcomed_under_its_files_name(server, connect, key) -> None:
    server.start()
    server.authorize(key, "pi")
    server.wait_for("authorized devices: 1")
    device = connect("pi", key=key)
    contact = device.contact()
    assert isinstance(contact.answer, Welcome)
    assert contact.handshake_done
    device.send_samples(0, 1)
    assert isinstance(device.receive(), Ack)


def test_the_server_prints_what_devices_need_to_come_in(server) -> None:
    server.start()
    line = server.wait_for("devices come in encrypted with")
    assert f"--server {server.address} --server-key {server.key.public.hex}" in line


def test_an_unknown_key_stays_outside_and_is_named_once_with_its_cure(server, connect, key) -> None:
    server.start()
    for _ in range(3):
        contact = connect(key=key).contact()
        assert (contact.answer, contact.trouble, contact.handshake_done) == (None, LinkEvent.KEY_REFUSED, False)
    line = server.wait_for(f"an unknown key {key.public.key_id} from 127.0.0.1 was refused")
    assert f"put its .pub file into {server.authorized} as NAME.pub" in line
    assert server.said("unknown key") == 1


def test_a_key_added_while_a_device_waits_lets_it_in_without_a_restart(server, connect, key) -> None:
    server.start()
    device = connect("pi", key=key)
    assert device.contact().trouble is LinkEvent.KEY_REFUSED
    server.authorize(key, "pi")
    server.wait_for("authorized devices: 1")
    assert isinstance(device.contact().answer, Welcome)


def test_a_key_removed_while_its_device_is_connected_ends_the_session_with_a_refusal(server, connect, key) -> None:
    server.start()
    server.authorize(key, "pi")
    server.wait_for("authorized devices: 1")
    device = connect("pi", key=key)
    assert isinstance(device.contact().answer, Welcome)
    server.withdraw("pi")
    refusal = device.receive()
    assert isinstance(refusal, Refusal)
    assert refusal.code is RefusalCode.NOT_AUTHORISED
    assert refusal.retry_after_s is not None
    server.wait_for("is not authorized any more")
    device.wait_for_event(LinkEvent.DOWN)
    assert device.contact().trouble is LinkEvent.KEY_REFUSED


def test_a_device_cannot_use_the_name_of_another_and_both_sides_say_so(server, connect, key) -> None:
    other = new_link_key()
    server.start()
    server.authorize(key, "pi")
    server.authorize(other, "phone")
    server.wait_for("authorized devices: 2")
    answer = connect(key=key).contact(name="phone").answer
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.retry_after_s) == (RefusalCode.KEY_NAME, None)
    assert "may only be used by pi" in answer.detail
    line = server.wait_for("calls itself phone")
    assert key.public.key_id in line
    assert "127.0.0.1" in line
    assert isinstance(connect("phone", key=other).contact().answer, Welcome)


def test_a_server_with_another_key_is_told_apart(server, connect, key) -> None:
    server.start()
    device = connect(key=key, server_key=new_link_key())
    assert device.contact().trouble is LinkEvent.DROPPED
    assert "its key is not" in describe(LinkEvent.DROPPED, device.link.ends)
    assert server.key.public.key_id in server.wait_for("expected a server with another key")


def test_a_device_in_the_clear_does_not_reach_an_encrypted_server(server, connect) -> None:
    server.start()
    device = connect(in_the_clear=True)
    for _ in range(100):
        trouble = device.contact().trouble
        assert trouble in MISMATCH
        assert "encrypts" in describe(trouble, device.link.ends)
        if server.said("tried to connect without encryption"):
            break
    assert server.said("tried to connect without encryption") == 1


def test_an_encrypted_device_does_not_talk_to_a_server_in_the_clear(server, connect, key) -> None:
    server.start(authorized=None)
    device = connect(key=key, server_key=new_link_key())
    trouble = device.contact().trouble
    assert trouble in MISMATCH
    assert "does not encrypt" in describe(trouble, device.link.ends)
    assert isinstance(connect(in_the_clear=True).contact().answer, Welcome)


def test_nobody_listening_and_no_such_host_are_told_apart(server, connect, key) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        nobody = connect(key=key, server_key=new_link_key(), address=address).contact()
    assert nobody.trouble is LinkEvent.NO_LISTENER
    nowhere = connect(key=key, server_key=new_link_key(), address="tcp://no-such-host.invalid:5555").contact()
    assert nowhere.trouble is LinkEvent.NO_ADDRESS


@pytest.fixture
def talker() -> Iterator[str]:
    """Another protocol's server: it greets and waits."""
    listener = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 4)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()
    for connection in connections:
        connection.close()


def test_another_protocols_server_is_told_apart(connect, key, talker) -> None:
    assert connect(key=key, server_key=new_link_key(), address=talker).contact().trouble is LinkEvent.NOT_OURS


def host_and_port(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("tcp://").split(":")
    return host, int(port)


@pytest.mark.parametrize(
    ("settings", "greeting"), [({}, Greeting.ENCRYPTED), ({"authorized": None}, Greeting.IN_THE_CLEAR)]
)
def test_a_server_tells_anybody_whether_it_encrypts(server, connect, key, settings, greeting) -> None:
    server.start(**settings)
    assert ask_greeting(*host_and_port(server.address), timeout_s=PATIENCE_S) is greeting


def test_other_servers_greet_differently_and_nobody_does_not_greet(talker) -> None:
    assert ask_greeting(*host_and_port(talker), timeout_s=PATIENCE_S) is Greeting.NOT_ZEROMQ
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            ask_greeting(*taken.getsockname(), timeout_s=PATIENCE_S)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert ask_greeting(*silent.getsockname(), timeout_s=0.05) is Greeting.NOT_ZEROMQ
