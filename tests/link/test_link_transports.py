"""The same link over every transport that an address can name."""

from __future__ import annotations

import socket

import pytest

from sf_contract.messages import Ack, Welcome


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.fixture(params=["ipc", "ipv4", "ipv6"])
def bind(request, tmp_path) -> str:
    if request.param == "ipv6" and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    return {"ipc": f"ipc://{tmp_path}/s", "ipv4": "tcp://127.0.0.1:*", "ipv6": "tcp://[::1]:*"}[request.param]


def test_a_device_is_received_in_the_clear(server, connect, bind) -> None:
    server.start(bind=bind, authorized=None)
    check_delivery(connect("pi", in_the_clear=True))


def test_a_device_is_received_encrypted(server, connect, bind, key) -> None:
    server.start(bind=bind)
    server.authorize(key, "pi")
    server.wait_for("authorized devices: 1")
    check_delivery(connect("pi", key=key))


def check_delivery(device) -> None:
    assert isinstance(device.contact().answer, Welcome)
    device.send_samples(0)
    assert isinstance(device.receive(), Ack)
