"""Which connections may stay: pure decisions."""

from __future__ import annotations

import socket

import pytest

from sf_server.link.doorkeeper import Doorkeeper, DoorLimits
from sf_server.link.tcp_bytes import end_connection, received_bytes

LIMITS = DoorLimits(connections=3, undelivered_bytes=1_000, per_key=2, silent_s=60, silent_bytes=100)
KEY, OTHER = b"k" * 32, b"o" * 32


@pytest.fixture
def door() -> Doorkeeper:
    return Doorkeeper(LIMITS)


def numbers(closings) -> list[int]:
    return [closing.number for closing in closings]


def nothing(_: int) -> int:
    return 0


def test_as_many_connections_as_allowed_may_stay(door) -> None:
    assert [door.opened(number, now_s=number) for number in (1, 2, 3)] == [[], [], []]
    assert len(door) == 3


def test_when_there_are_too_many_the_one_goes_that_was_silent_longest(door) -> None:
    for number in (1, 2, 3):
        door.opened(number, now_s=number)
    door.heard(1, None, now_s=3)
    assert numbers(door.opened(4, now_s=4)) == [2]
    assert numbers(door.opened(5, now_s=5)) == [3]


def test_a_newcomer_goes_when_all_others_are_devices_that_speak(door) -> None:
    for number in (1, 2, 3):
        door.opened(number, now_s=number)
        door.heard(number, None, now_s=number)
    assert numbers(door.opened(4, now_s=4)) == [4]


def test_a_place_is_free_again_when_its_connection_is_gone(door) -> None:
    for number in (1, 2, 3):
        door.opened(number, now_s=number)
    door.closed(2)
    assert door.opened(4, now_s=4) == []


def test_a_connection_that_was_told_to_go_is_not_told_twice(door) -> None:
    door.opened(1, now_s=0)
    assert numbers(door.overdue(nothing, now_s=61)) == [1]
    assert door.overdue(nothing, now_s=62) == []


def test_a_number_that_is_used_again_is_another_connection(door) -> None:
    door.opened(1, now_s=0)
    door.heard(1, KEY, now_s=0)
    door.closed(1)
    door.opened(1, now_s=100)
    assert door.of_key(KEY) == []
    assert numbers(door.overdue(nothing, now_s=161)) == [1]


def test_who_says_nothing_for_a_minute_goes_and_who_spoke_may_be_silent(door) -> None:
    door.opened(1, now_s=0)
    door.opened(2, now_s=0)
    door.heard(2, KEY, now_s=1)
    assert door.overdue(nothing, now_s=60) == []
    assert numbers(door.overdue(nothing, now_s=61)) == [1]


def test_who_sends_much_before_a_first_message_goes(door) -> None:
    door.opened(1, now_s=0)
    assert door.overdue(lambda _: 100, now_s=1) == []
    assert numbers(door.overdue(lambda _: 101, now_s=1)) == [1]


def test_bytes_without_a_message_are_counted_from_the_last_message(door) -> None:
    door.opened(1, now_s=0)
    door.heard(1, KEY, now_s=0)
    assert door.overdue(lambda _: 50_000, now_s=1) == []
    assert door.overdue(lambda _: 51_000, now_s=2) == []
    door.heard(1, KEY, now_s=2)
    assert door.overdue(lambda _: 51_800, now_s=3) == []
    assert door.overdue(lambda _: 52_800, now_s=4) == []
    assert numbers(door.overdue(lambda _: 52_801, now_s=5)) == [1]


def test_where_bytes_cannot_be_counted_only_silence_counts(door) -> None:
    door.opened(1, now_s=0)
    assert door.overdue(lambda _: None, now_s=1) == []
    assert numbers(door.overdue(lambda _: None, now_s=61)) == [1]


def test_a_key_keeps_its_newest_connections_and_others_are_left_alone() -> None:
    door = Doorkeeper(DoorLimits(connections=10, undelivered_bytes=1, per_key=2))
    for number, key in enumerate((KEY, OTHER, KEY, KEY, None, None, None)):
        door.opened(number, now_s=number)
        assert numbers(door.heard(number, key, now_s=number)) == ([0] if number == 3 else [])
        assert door.heard(number, key, now_s=number) == []
    assert door.of_key(KEY) == [2, 3]


def test_the_system_tells_what_a_connection_has_received_and_ends_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        with near, far:
            near.sendall(b"x" * 1_000)
            assert len(far.recv(1_000, socket.MSG_WAITALL)) == 1_000
            assert received_bytes(far.fileno()) == 1_000
            end_connection(far.fileno())
            assert near.recv(1) == b""
            assert far.fileno() >= 0


def test_a_number_that_is_no_connection_is_left_alone(tmp_path) -> None:
    with (tmp_path / "file").open("wb") as stream:
        assert received_bytes(stream.fileno()) is None
        end_connection(stream.fileno())
        stream.write(b"still open")
    assert received_bytes(10_000) is None
    end_connection(10_000)
