"""What only shows after a while: looks at a watched file that come too late, sockets that are left behind."""

from __future__ import annotations

import time
from pathlib import Path

from sf_edge.link.dealer import Link
from sf_edge.sources.files import SHORTEST_LOOK_INTERVAL_S, FilesSource, Surroundings
from sf_edge.sources.listing import OneFile
from sf_edge.sources.reading_rules import ReadingRules


def test_time_that_the_outbox_was_full_does_not_put_off_the_next_look_at_a_watched_file(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n{"text": "b"}\n')
    now_s = [0.0]
    around = Surroundings(clock=lambda: now_s[0], say=[].append, move=lambda moves: None)
    source = FilesSource(OneFile(data), positions={}, rules=ReadingRules(), watch=True, around=around)
    assert source.take() is not None
    now_s[0] += 600.0  # nobody asked for the next row: there was no room for it
    assert source.take() is not None
    assert source.take() is None
    assert source.next_look_s == now_s[0] + SHORTEST_LOOK_INTERVAL_S


def test_connecting_again_and_again_leaves_no_descriptor_behind() -> None:
    with Link("tcp://127.0.0.1:1") as link:
        link.connect()
        before = _descriptors()
        for _ in range(50):
            link.connect()
        deadline_s = time.monotonic() + 20
        while _descriptors() > before + 4:  # ZeroMQ closes in the background
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
