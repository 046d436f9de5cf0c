"""The rate of a device: what it is granted, and what it really can send."""

from __future__ import annotations

import pytest

from sf_server.link.byte_rate import LONGEST_DEBT_S, SMALLEST_BURST_BYTES, ByteRate

RATE = 100_000.0
MOST = 1 << 30


def test_at_the_start_a_burst_is_granted_and_never_more_than_the_credit() -> None:
    rate = ByteRate(RATE, now_s=0)
    assert rate.credit_bytes(MOST, now_s=0) == RATE
    assert rate.credit_bytes(500, now_s=0) == 500


def test_a_slow_rate_still_has_room_for_a_batch() -> None:
    assert ByteRate(10, now_s=0).credit_bytes(MOST, now_s=0) == SMALLEST_BURST_BYTES


def test_nothing_is_granted_until_a_quarter_of_the_burst_is_there() -> None:
    rate = ByteRate(RATE, now_s=0)
    assert rate.charge(int(RATE), now_s=0) == 0
    assert rate.credit_bytes(MOST, now_s=0.24) == 0
    assert rate.credit_bytes(MOST, now_s=0.26) == pytest.approx(26_000, abs=2)


def test_a_sample_larger_than_the_credit_is_paid_back_before_the_next_grant() -> None:
    rate = ByteRate(RATE, now_s=0)
    rate.charge(300_000, now_s=0)
    assert rate.credit_bytes(MOST, now_s=2.2) == 0
    assert rate.credit_bytes(MOST, now_s=2.3) > 0


def test_who_sends_without_room_is_told_how_long_it_was_too_early() -> None:
    rate = ByteRate(RATE, now_s=0)
    assert rate.charge(300_000, now_s=0) == 0
    assert rate.charge(50_000, now_s=0) == pytest.approx(2.0)


def test_debts_do_not_grow_without_end() -> None:
    rate = ByteRate(RATE, now_s=0)
    for _ in range(100):
        rate.charge(10_000_000, now_s=0)
    assert rate.charge(1, now_s=0) == pytest.approx(LONGEST_DEBT_S)


def test_a_device_that_keeps_to_its_credit_sends_at_its_rate_and_is_never_too_early() -> None:
    rate, now_s, sent = ByteRate(RATE, now_s=0), 0.0, 0
    while now_s < 100:
        granted = rate.credit_bytes(MOST, now_s=now_s)
        if granted:
            assert rate.charge(granted, now_s=now_s) == 0
            sent += granted
        now_s += 0.05
    assert sent == pytest.approx(100 * RATE, rel=0.02)


def test_an_idle_device_is_told_apart_by_its_full_bucket_also_when_a_clock_jumps_back() -> None:
    rate = ByteRate(RATE, now_s=1000)
    rate.charge(1, now_s=1000)
    assert not rate.is_full(now_s=500)
    assert rate.is_full(now_s=501)
