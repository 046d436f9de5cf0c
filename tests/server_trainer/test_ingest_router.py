from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sf_contract.frames import encode
from sf_contract.messages import Ping, Pong
from sf_server.link.router import MAX_FRAMES, Arrival, Router

PATIENCE_S = 20.0
NO_BUNDLE = "0" * 64


@pytest.fixture
def router() -> Iterator[Router]:
    with Router("tcp://127.0.0.1:*") as bound:
        yield bound


def _receive(router: Router, messages: int, *, max_bytes: int = 10**9, max_messages: int = 1000) -> list[list[Arrival]]:
    """Groups until so many messages have come."""
    groups: list[list[Arrival]] = []
    while sum(map(len, groups)) < messages:
        group = router.receive(timeout_s=PATIENCE_S, max_bytes=max_bytes, max_messages=max_messages)
        assert group, "nothing came"
        groups.append(group)
    return groups


def test_the_address_names_the_port_that_was_given_for_a_wildcard(router: Router) -> None:
    assert int(router.address.removeprefix("tcp://127.0.0.1:")) > 0


def test_an_answer_reaches_the_device_that_asked(router: Router, connect_device: Any) -> None:
    phone = connect_device(router.address, name="phone", bundle_id=NO_BUNDLE)
    tablet = connect_device(router.address, name="tablet", bundle_id=NO_BUNDLE)
    phone.send(Ping())
    tablet.send_raw([b"x" * 10])
    for group in _receive(router, 2):
        for arrival in group:
            if arrival.frames == tuple(encode(Ping())):
                assert router.send(arrival.identity, encode(Pong()))
    assert phone.receive() == Pong()


def test_an_answer_to_nobody_is_reported_not_raised(router: Router) -> None:
    assert not router.send(b"gone", encode(Pong()))


def test_a_message_with_too_many_frames_is_counted_whole_and_kept_in_part(router: Router, connect_device: Any) -> None:
    connect_device(router.address, bundle_id=NO_BUNDLE).send_raw([b"abc"] * 1000)
    ((arrival,),) = _receive(router, 1)
    assert len(arrival.frames) == MAX_FRAMES + 1
    assert arrival.nbytes == 3000


def test_a_group_ends_at_its_limit_of_bytes_and_the_rest_comes_later(router: Router, connect_device: Any) -> None:
    device = connect_device(router.address, bundle_id=NO_BUNDLE)
    for _ in range(6):
        device.send_raw([b"x" * 1000])
    groups = _receive(router, 6, max_bytes=1500)
    assert all(sum(arrival.nbytes for arrival in group) <= 2000 for group in groups)


def test_a_group_ends_at_its_limit_of_messages_however_small_they_are(router: Router, connect_device: Any) -> None:
    device = connect_device(router.address, bundle_id=NO_BUNDLE)
    for _ in range(20):
        device.send_raw([b""])
    assert all(len(group) <= 3 for group in _receive(router, 20, max_messages=3))


def test_devices_take_turns_however_much_one_of_them_sends(router: Router, connect_device: Any) -> None:
    eager = connect_device(router.address, name="eager", bundle_id=NO_BUNDLE)
    modest = connect_device(router.address, name="modest", bundle_id=NO_BUNDLE)
    eager.send_raw([b"first"])
    modest.send_raw([b"first"])
    _receive(router, 2)
    for _ in range(500):
        eager.send_raw([b"eager"])
    modest.send_raw([b"modest"])
    order = [arrival.frames[0] for group in _receive(router, 501) for arrival in group]
    assert order.index(b"modest") < 500


def test_nothing_arrives_when_nobody_sends(router: Router) -> None:
    assert router.receive(timeout_s=0, max_bytes=1, max_messages=1) == []
