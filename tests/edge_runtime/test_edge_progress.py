"""What a person is told."""

from __future__ import annotations

from sf_edge.actions import Wait
from sf_edge.counters import Counters
from sf_edge.outbox.records import SetAside
from sf_edge.progress import SKIPS_SHOWN, ProgressLine, SkipNotices, WaitNotices, readable_bytes
from sf_edge.status import SET_ASIDE_SHOWN, set_aside_lines


def test_a_wait_is_told_after_ten_seconds_and_every_ten_seconds() -> None:
    said: list[str] = []
    notices = WaitNotices(said.append)
    for now_s in range(35):
        notices.note(Wait("the server", 0.0), float(now_s))
    assert said == [f"waiting for the server since {s} s" for s in (10, 20, 30)]


def test_short_waits_are_not_told() -> None:
    said: list[str] = []
    notices = WaitNotices(said.append)
    for now_s in range(100):
        notices.note(Wait("the server", float(now_s - now_s % 9)), float(now_s))
        notices.note(None, float(now_s))
    assert said == []


def test_a_new_wait_is_told_although_the_interval_of_the_old_one_is_not_over() -> None:
    said: list[str] = []
    notices = WaitNotices(said.append, every_s=600)
    for now_s in range(100):
        notices.note(Wait("lines", 0.0 if now_s < 50 else 50.0), float(now_s))
    assert said == ["waiting for lines since 10 s", "waiting for lines since 10 s"]


def test_the_first_skipped_rows_are_told_in_full_and_the_others_counted() -> None:
    said: list[str] = []
    notices = SkipNotices(said.append, where="rows.jsonl")
    for line in range(1, 10):
        notices.note(line, "not JSON")
    notices.close()
    assert said[0] == "rows.jsonl, line 1 skipped: not JSON"
    assert len(said) == SKIPS_SHOWN + 1
    assert said[-1] == "rows.jsonl: 4 more rows were skipped"


def test_progress_is_told_every_five_seconds() -> None:
    said: list[str] = []
    progress = ProgressLine(said.append, device="pi", now_s=0.0)
    for tenth in range(120):
        progress.note(Counters(rows=tenth), 3, tenth / 10)
    assert [line.split(",")[0] for line in said] == ["pi: 50 rows", "pi: 100 rows"]


def test_progress_is_not_told_again_when_there_is_none() -> None:
    said: list[str] = []
    progress = ProgressLine(said.append, device="pi", now_s=0.0)
    for now_s in range(100):
        progress.note(Counters(rows=min(now_s, 20), bytes_up=now_s), 0, float(now_s))
    assert len(said) == 4


def test_sizes_are_readable() -> None:
    sizes = [readable_bytes(n) for n in (0, 1023, 1536, 3 << 20, 5 << 29)]
    assert sizes == ["0 B", "1023 B", "1.5 KiB", "3.0 MiB", "2.5 GiB"]


def test_what_was_set_aside_is_counted_by_reason_and_the_first_shown() -> None:
    items = [SetAside(i, i + 1, "label", "no such label") for i in range(SET_ASIDE_SHOWN + 2)]
    lines = set_aside_lines([*items, SetAside(None, 99, "not-finite", "inf")])
    assert lines[0] == "  set aside, label: 12"
    assert lines[1] == "  set aside, not-finite: 1"
    assert "line 1: label: no such label" in lines[2]
    assert lines[-1] == "    and 3 more (--json lists them all)"
    assert set_aside_lines([]) == []
