from __future__ import annotations

import socket

import pytest

from sf_contract.errors import AddressInUse, UsageError
from sf_server.seeing.dashboard.address import (
    WebAddress,
    bound_address,
    may_be_called,
    open_socket,
    web_address,
    web_addresses,
)

LOOPBACK = WebAddress(host="127.0.0.1", port=8765)
OPEN = WebAddress(host="dash.example.org", port=80)


def _address(text: str, *, without_login: bool = False) -> WebAddress:
    return web_address(text, option="--dashboard", without_login=without_login)


@pytest.mark.parametrize("text", ["127.0.0.1:8765", "localhost:1", "LocalHost:1", "127.9.8.7:0", "[::1]:8765"])
def test_addresses_of_this_machine_alone_are_taken(text: str) -> None:
    assert _address(text).is_loopback
    assert str(_address(text)) == text.lower()


@pytest.mark.parametrize(
    "text", ["0.0.0.0:8765", "[::]:80", "10.0.0.5:80", "example.org:80", "localhost.example.org:80"]
)
def test_an_address_that_others_can_reach_needs_to_be_allowed(text: str) -> None:
    with pytest.raises(UsageError, match="no login") as raised:
        _address(text)
    assert "--open-without-login" in raised.value.cure
    assert _address(text, without_login=True) == WebAddress(
        text.rpartition(":")[0].strip("[]"), int(text.rpartition(":")[2])
    )


@pytest.mark.parametrize(
    "text", ["", "8765", ":8765", "127.0.0.1", "127.0.0.1:65536", "::1:80", "[x]:80", "[127.0.0.1:80", "a b:1"]
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is no address") as raised:
        _address(text)
    assert "127.0.0.1:8765" in raised.value.cure


def test_off_means_none_and_two_ports_are_two() -> None:
    assert not web_addresses(dashboard=None, metrics="off", without_login=False).any
    assert web_addresses(dashboard="127.0.0.1:0", metrics="127.0.0.1:0", without_login=False).any
    with pytest.raises(UsageError, match="same port 90"):
        web_addresses(dashboard="127.0.0.1:90", metrics="127.0.0.2:90", without_login=False)


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "127.0.0.1:8765", "localhost:9000", "LOCALHOST", "[::1]", "[::1]:80", "127.4.4.4"]
)
def test_a_browser_may_call_this_machine_by_its_loopback_names_on_any_port(name: str) -> None:
    assert may_be_called(name, LOOPBACK)


@pytest.mark.parametrize(
    "name", ["", "evil.example", "evil.example:8765", "10.0.0.5", "127.0.0.1.evil.example", "localhost.evil.example",
             "127.0.0.1@evil.example", "[::1].evil.example", "127.0.0.1:80:80", "localhost:x", "127.0.0.1, evil.example"]
)  # fmt: skip
def test_a_name_that_somebody_else_may_point_here_is_not_answered(name: str) -> None:
    assert not may_be_called(name, LOOPBACK)


def test_where_others_may_connect_the_given_name_and_addresses_are_answered_and_other_names_are_not() -> None:
    assert may_be_called("Dash.Example.org:80", OPEN)
    assert may_be_called("10.0.0.5", OPEN)
    assert may_be_called("[fe80::1]:80", OPEN)
    assert not may_be_called("evil.example", OPEN)


def test_a_port_that_is_taken_is_told_with_the_option_that_gave_it() -> None:
    with open_socket(WebAddress("127.0.0.1", 0), option="--bind") as first:
        taken = bound_address(first, WebAddress("127.0.0.1", 0))
        with pytest.raises(AddressInUse, match="--bind 127") as raised:
            open_socket(taken, option="--bind")
    assert "another port" in raised.value.cure


def test_a_port_is_free_again_at_once_after_a_connection_was_served() -> None:
    """A resume a second later must not have to wait for the system to forget the old connections."""
    listening = open_socket(WebAddress("localhost", 0), option="--bind")
    address = bound_address(listening, WebAddress("localhost", 0))
    with listening, socket.create_connection(("127.0.0.1", address.port)):
        listening.accept()[0].close()
    open_socket(address, option="--bind").close()


def test_an_address_of_another_machine_is_a_mistake_with_a_cure() -> None:
    with pytest.raises(UsageError, match="cannot be listened on") as raised:
        open_socket(WebAddress("192.0.2.1", 0), option="--bind")
    assert "this machine" in raised.value.cure
