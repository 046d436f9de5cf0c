"""Shares, percentiles, slopes, and what Linux says about a process."""

from __future__ import annotations

import os
import time

import pytest

from sf_bench.ingest.statistics import jain_index, percentile, slope
from sf_bench.ingest.watch import Reading, parse_written, read_process, rss_growth

MB = 1_000_000


def reading(samples: int, rss_bytes: int) -> Reading:
    return Reading(at_s=0.0, samples=samples, rss_bytes=rss_bytes, cpu_s=0.0, written_bytes=0, descriptors=1)


def test_equal_shares_have_index_one() -> None:
    assert jain_index([7.0] * 500) == pytest.approx(1.0)


def test_one_device_that_has_everything_gives_one_over_n() -> None:
    assert jain_index([5 * MB, 0, 0, 0]) == pytest.approx(0.25)


def test_the_index_is_that_of_the_definition() -> None:
    assert jain_index([1, 2, 3]) == pytest.approx(36 / (3 * 14))


def test_the_index_does_not_depend_on_the_unit() -> None:
    shares = [3, 5, 8]
    assert jain_index([share * 1e200 for share in shares]) == pytest.approx(jain_index(shares))


def test_devices_that_all_got_nothing_got_the_same() -> None:
    assert jain_index([0, 0]) == 1.0


@pytest.mark.parametrize("shares", [[], [1, -1]])
def test_an_index_of_nothing_or_of_less_than_nothing_is_refused(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        jain_index(shares)


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([4.0, 1.0], 50) == 1.0
    assert percentile([], 50) is None


def test_a_slope_is_that_of_the_line_through_the_points() -> None:
    assert slope([0, 1, 2], [5, 7, 9]) == pytest.approx(2)
    assert slope([0, 1, 2], [5, 5, 5]) == pytest.approx(0)
    assert slope([3, 3], [1, 2]) is None
    with pytest.raises(ValueError, match="2 places and 1 values"):
        slope([1, 2], [1])


def test_memory_grows_in_kilobytes_per_thousand_samples() -> None:
    readings = [reading(samples, 50 * MB + 20 * samples) for samples in range(0, 5_000, 1_000)]
    assert rss_growth(readings) == pytest.approx(20)
    assert rss_growth([reading(7, 50 * MB), reading(7, 60 * MB)]) is None


def test_written_bytes_are_those_that_reach_the_disk() -> None:
    io = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 6\n"
    assert parse_written(io) == 4096


def test_a_reading_of_this_process_has_its_memory_and_open_files() -> None:
    before = read_process(os.getpid(), at_s=time.monotonic(), samples=3)
    pipe = os.pipe()
    after = read_process(os.getpid(), at_s=time.monotonic(), samples=3)
    for descriptor in pipe:
        os.close(descriptor)
    assert after.descriptors == before.descriptors + 2
    assert 5 * MB < before.rss_bytes < 10_000 * MB
    assert after.cpu_s >= before.cpu_s > 0
