"""The data file: resuming, watching, noticing that it is another file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sf_contract.errors import DataError
from sf_contract.records import BadRow, Row
from sf_edge.sources import READING_SHARE, SHORTEST_LOOK_INTERVAL_S, RowSource, SourcePosition, Taken, rows_after

START = SourcePosition()


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
    return path


def json_line(text: str) -> str:
    return f'{{"text": "{text}"}}'


def texts(taken: list[Taken]) -> list[str]:
    return [item.row.record["text"] if isinstance(item.row, Row) else "bad" for item in taken]


def drain(source: RowSource) -> list[Taken]:
    found: list[Taken] = []
    while (taken := source.take()) is not None:
        found.append(taken)
    return found


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Ten rows, one of them bad, one line blank."""
    lines = [json_line(f"t{i}") for i in range(10)]
    return write(tmp_path / "rows.jsonl", *lines[:4], "not json", "", *lines[4:])


def test_reading_on_after_any_row_gives_exactly_the_rest(numbered: Path) -> None:
    everything = list(rows_after(numbered, START))
    assert texts(everything) == ["t0", "t1", "t2", "t3", "bad", *(f"t{i}" for i in range(4, 10))]
    for index, taken in enumerate(everything):
        assert list(rows_after(numbered, taken.position)) == everything[index + 1 :]


def test_a_changed_line_that_was_taken_is_noticed(numbered: Path) -> None:
    position = list(rows_after(numbered, START))[6].position
    numbered.write_text(numbered.read_text().replace("t1", "T1"))
    with pytest.raises(DataError, match="lines 1 to 8 have changed"):
        list(rows_after(numbered, position))


def test_a_changed_line_that_was_not_taken_is_fine(numbered: Path) -> None:
    position = list(rows_after(numbered, START))[6].position
    numbered.write_text(numbered.read_text().replace("t9", "T9"))
    assert texts(list(rows_after(numbered, position)))[-1] == "T9"


@pytest.mark.parametrize("keep", [0, 3])
def test_a_shortened_file_is_noticed(numbered: Path, keep: int) -> None:
    position = list(rows_after(numbered, START))[-1].position
    numbered.write_text("\n".join(numbered.read_text().splitlines()[:keep]))
    with pytest.raises(DataError, match="not the file"):
        list(rows_after(numbered, position))


def test_reordered_rows_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"), json_line("b"), json_line("c"))
    position = list(rows_after(path, START))[1].position
    write(path, json_line("b"), json_line("a"), json_line("c"))
    with pytest.raises(DataError):
        list(rows_after(path, position))


def test_csv_rows_with_line_breaks_resume_too(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,label", '"two', 'lines",x', "one,y")
    first, second = rows_after(path, START)
    assert (first.position.line, second.position.line) == (3, 4)
    assert list(rows_after(path, first.position)) == [second]


def test_a_source_ends_when_it_is_not_watching(numbered: Path) -> None:
    source = RowSource(numbered, position=START, watch=False, clock=FakeClock())
    assert len(drain(source)) == 11
    assert source.exhausted
    assert source.take() is None


def test_a_last_line_without_line_end_is_a_row_unless_it_may_still_grow(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"))
    path.write_text(path.read_text() + json_line("b"))
    assert texts(list(rows_after(path, START))) == ["a", "b"]
    assert texts(list(rows_after(path, START, complete_lines_only=True))) == ["a"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_watching_counts_lines_as_the_reader_does(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"), "", json_line("b"), end=end)
    assert texts(list(rows_after(path, START, complete_lines_only=True))) == ["a", "b"]


def test_a_line_that_is_completed_while_reading_is_left_for_the_next_look(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"))
    with path.open("a") as stream:
        stream.write('{"text": ')
    rows = rows_after(path, START, complete_lines_only=True)
    first = next(rows)
    with path.open("a") as stream:
        stream.write('"b"}\n')
    assert list(rows) == []
    assert texts(list(rows_after(path, first.position, complete_lines_only=True))) == ["b"]


def test_watching_finds_appended_rows_and_looks_once_per_interval(tmp_path: Path) -> None:
    clock = FakeClock()
    path = write(tmp_path / "rows.jsonl", json_line("a"))
    source = RowSource(path, position=START, watch=True, clock=clock)
    assert texts(drain(source)) == ["a"]
    assert not source.exhausted
    with path.open("a") as stream:
        stream.write(json_line("b") + "\n")
    assert source.take() is None, "too early to look again"
    assert source.next_look_s == clock.now_s + SHORTEST_LOOK_INTERVAL_S
    clock.now_s = source.next_look_s
    assert texts(drain(source)) == ["b"]
    clock.now_s = source.next_look_s
    assert drain(source) == []


def test_a_slow_file_is_read_again_more_rarely(numbered: Path) -> None:
    clock = FakeClock()
    source = RowSource(numbered, position=START, watch=True, clock=clock)
    source.take()
    clock.now_s += 2.0
    drain(source)
    assert source.next_look_s == pytest.approx(clock.now_s + 2.0 / READING_SHARE)


def test_a_watched_file_that_is_replaced_is_noticed(numbered: Path) -> None:
    clock = FakeClock()
    source = RowSource(numbered, position=START, watch=True, clock=clock)
    drain(source)
    write(numbered, json_line("other"))
    clock.now_s = source.next_look_s
    with pytest.raises(DataError, match="not the file"):
        source.take()


def test_a_watched_file_that_disappears_is_named(numbered: Path) -> None:
    clock = FakeClock()
    source = RowSource(numbered, position=START, watch=True, clock=clock)
    drain(source)
    numbered.unlink()
    clock.now_s = source.next_look_s
    with pytest.raises(DataError, match="cannot be read"):
        source.take()


def test_bad_rows_keep_their_line_numbers(make_source: Callable[[str], RowSource]) -> None:
    (taken,) = drain(make_source("\n\n[1, 2]\n"))
    assert isinstance(taken.row, BadRow)
    assert taken.row.line == 3


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[[str], RowSource]:
    def make(content: str) -> RowSource:
        path = tmp_path / "rows.jsonl"
        path.write_text(content)
        return RowSource(path, position=START, watch=False, clock=FakeClock())

    return make
