"""Long work is told about; short work says nothing."""

from __future__ import annotations

import threading

from sf_model.progress import EVERY_S, ByteProgress, told_while


def test_bytes_are_told_every_few_seconds_and_not_more_often():
    now = [0.0]
    said: list[str] = []
    progress = ByteProgress(said.append, "hashing", total_bytes=30_000_000, clock=lambda: now[0])
    progress.add(10_000_000)
    assert said == []
    now[0] = EVERY_S
    progress.add(10_000_000)
    progress.add(5_000_000)
    assert said == ["hashing: 20 of 30 MB"]


def test_work_that_cannot_be_counted_is_told_until_it_ends():
    twice = threading.Event()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 2:
            twice.set()

    with told_while(say, "loading", every_s=0.001):
        assert twice.wait(60)
    number = len(said)
    assert all(line.startswith("loading (") for line in said)
    with told_while(say, "loading"):
        pass
    assert len(said) == number
