"""Single data files: resuming, watching, noticing that it is another file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sf_contract.errors import DataError
from sf_contract.records import BadRow, RecordFormat, Row, format_of
from sf_edge.sources import SourcePosition, Taken, file_rows
from sf_edge.sources.files import READING_SHARE, SHORTEST_LOOK_INTERVAL_S, FilesSource, Surroundings
from sf_edge.sources.listing import OneFile
from sf_edge.sources.reading_rules import ReadingRules

START = SourcePosition()


class FakeClock:
    """Stands still, or goes on by a step whenever it is looked at."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s = 100.0
        self._step_s = step_s

    def __call__(self) -> float:
        self.now_s += self._step_s
        return self.now_s


def rows_after(path: Path, position: SourcePosition, *, is_growing: bool = False) -> list[Taken]:
    wanted = format_of(path)
    assert wanted is not None
    rules = ReadingRules()
    return list(file_rows.rows_after(path, position, rules=rules, record_format=wanted, is_growing=is_growing))


def make_one_file(
    path: Path, *, watch: bool, clock: FakeClock, said: list[str] | None = None, positions: dict | None = None
) -> FilesSource:
    around = Surroundings(clock=clock, say=[].append if said is None else said.append, move=lambda moves: None)
    return FilesSource(OneFile(path), positions=positions or {}, rules=ReadingRules(), watch=watch, around=around)


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
    return path


def json_line(text: str) -> str:
    return f'{{"text": "{text}"}}'


def texts(taken: list[Taken]) -> list[str]:
    return [item.row.record["text"] if isinstance(item.row, Row) else "bad" for item in taken]


def drain(source: FilesSource) -> list[Taken]:
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
    everything = rows_after(numbered, START)
    assert texts(everything) == ["t0", "t1", "t2", "t3", "bad", *(f"t{i}" for i in range(4, 10))]
    for index, taken in enumerate(everything):
        assert rows_after(numbered, taken.position) == everything[index + 1 :]


def test_a_changed_line_that_was_taken_is_noticed(numbered: Path) -> None:
    position = rows_after(numbered, START)[6].position
    numbered.write_text(numbered.read_text().replace("t1", "T1"))
    with pytest.raises(DataError, match="lines 1 to 8 have changed"):
        rows_after(numbered, position)


def test_a_changed_line_that_was_not_taken_is_fine(numbered: Path) -> None:
    position = rows_after(numbered, START)[6].position
    numbered.write_text(numbered.read_text().replace("t9", "T9"))
    assert texts(rows_after(numbered, position))[-1] == "T9"


@pytest.mark.parametrize("keep", [0, 3])
def test_a_shortened_file_is_noticed(numbered: Path, keep: int) -> None:
    position = rows_after(numbered, START)[-1].position
    numbered.write_text("\n".join(numbered.read_text().splitlines()[:keep]))
    with pytest.raises(DataError, match="not the file"):
        rows_after(numbered, position)


@pytest.mark.parametrize("now", ["{position}", "{position} ", "x"])
def test_a_last_line_that_went_on_after_it_was_taken_is_another_line(tmp_path: Path, now: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json_line("a"))
    (taken,) = rows_after(path, START)
    path.write_text(json_line("a") + now)
    with pytest.raises(DataError, match="line 1 went on"):
        rows_after(path, taken.position)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_last_line_that_got_its_end_later_is_the_same_line(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"), end="")
    (taken,) = rows_after(path, START)
    write(path, json_line("a"), json_line("b"), end=end)
    (following,) = rows_after(path, taken.position)
    assert (following.row.line, texts([following])) == (2, ["b"])


def test_reordered_rows_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"), json_line("b"), json_line("c"))
    position = rows_after(path, START)[1].position
    write(path, json_line("b"), json_line("a"), json_line("c"))
    with pytest.raises(DataError):
        rows_after(path, position)


def test_csv_rows_with_line_breaks_resume_too(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text,label", '"two', 'lines",x', "one,y")
    first, second = rows_after(path, START)
    assert (first.position.line, second.position.line) == (3, 4)
    assert rows_after(path, first.position) == [second]


def test_a_source_ends_when_it_is_not_watching(numbered: Path) -> None:
    source = make_one_file(numbered, watch=False, clock=FakeClock())
    assert len(drain(source)) == 11
    assert source.exhausted
    assert source.take() is None


def test_a_last_line_without_line_end_is_a_row_unless_it_may_still_grow(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"))
    path.write_text(path.read_text() + json_line("b"))
    assert texts(rows_after(path, START)) == ["a", "b"]
    assert texts(rows_after(path, START, is_growing=True)) == ["a"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_watching_counts_lines_as_the_reader_does(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"), "", json_line("b"), end=end)
    assert texts(rows_after(path, START, is_growing=True)) == ["a", "b"]


def test_a_line_that_is_completed_while_reading_is_taken_once(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json_line("a"))
    with path.open("a") as stream:
        stream.write('{"text": ')
    rows = file_rows.rows_after(path, START, rules=ReadingRules(), record_format=RecordFormat.JSONL, is_growing=True)
    first = next(rows)
    with path.open("a") as stream:
        stream.write('"b"}\n')
    rest = list(rows)
    last = rest[-1] if rest else first
    assert texts([*rest, *rows_after(path, last.position, is_growing=True)]) == ["b"]


def test_watching_finds_appended_rows_and_looks_once_per_interval(tmp_path: Path) -> None:
    clock = FakeClock()
    path = write(tmp_path / "rows.jsonl", json_line("a"))
    source = make_one_file(path, watch=True, clock=clock)
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
    clock = FakeClock(step_s=0.1)
    source = make_one_file(numbered, watch=True, clock=clock)
    started_s = clock.now_s
    drain(source)
    looked_s = (clock.now_s - started_s) / 2  # every other step of this clock passes outside of the reading
    assert source.next_look_s - clock.now_s == pytest.approx(looked_s / READING_SHARE, rel=0.2)


def test_time_spent_on_computing_rows_does_not_put_off_the_next_look(numbered: Path) -> None:
    clock = FakeClock()
    source = make_one_file(numbered, watch=True, clock=clock)
    while source.take() is not None:
        clock.now_s += 1000.0
    assert source.next_look_s == clock.now_s + SHORTEST_LOOK_INTERVAL_S


def test_a_watched_file_that_is_replaced_is_noticed(numbered: Path) -> None:
    clock = FakeClock()
    source = make_one_file(numbered, watch=True, clock=clock)
    drain(source)
    write(numbered, json_line("other"))
    clock.now_s = source.next_look_s
    with pytest.raises(DataError, match="not the file"):
        source.take()


def test_a_watched_file_that_disappears_is_named_and_waited_for(numbered: Path) -> None:
    clock, said = FakeClock(), []
    source = make_one_file(numbered, watch=True, clock=clock, said=said)
    drain(source)
    content = numbered.read_text()
    numbered.unlink()
    for _ in range(3):
        clock.now_s = source.next_look_s
        assert source.take() is None
    assert said == [f"{numbered} is gone; waiting until it is there again"]
    numbered.write_text(content + json_line("new") + "\n")
    clock.now_s = source.next_look_s
    assert texts(drain(source)) == ["new"]


def test_a_file_that_disappears_before_it_was_read_is_an_error_unless_it_is_watched(numbered: Path) -> None:
    source = make_one_file(numbered, watch=False, clock=FakeClock())
    numbered.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        source.take()


@pytest.mark.parametrize("change", ["overwrite", "truncate", "edit in place", "replace by renaming"])
def test_a_taken_part_that_changes_while_watched_is_an_error_that_names_the_file(numbered: Path, change: str) -> None:
    clock = FakeClock()
    source = make_one_file(numbered, watch=True, clock=clock)
    drain(source)
    content = numbered.read_text()
    match change:
        case "overwrite":
            numbered.write_text(content.replace("t1", "T1") + json_line("new") + "\n")
        case "truncate":
            os.truncate(numbered, 20)
        case "edit in place":
            with numbered.open("r+") as stream:
                stream.write(json_line("X0"))
        case "replace by renaming":
            write(numbered.with_name("new"), json_line("other")).rename(numbered)
    clock.now_s = source.next_look_s
    with pytest.raises(DataError, match=f"{numbered} is not the file.*lines 1 to 12 have changed"):
        source.take()


def test_a_file_that_is_truncated_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(json_line("x" * 1000) for _ in range(1000)))
    source = make_one_file(path, watch=False, clock=FakeClock())
    source.take()
    os.truncate(path, 5000)
    with pytest.raises(DataError, match="truncated while it was read"):
        drain(source)


@pytest.mark.parametrize("how", ["rename", "copy and truncate"])
@pytest.mark.parametrize("rotated", ["rows.jsonl.1", "rows.jsonl-20261124", "rows.jsonl.2026-11-24"])
def test_a_rotated_log_is_followed_to_its_end_and_then_begun_again(tmp_path: Path, how: str, rotated: str) -> None:
    clock, said = FakeClock(), []
    path = write(tmp_path / "rows.jsonl", json_line("a"), json_line("b"))
    moves: list[dict[str, str]] = []
    around = Surroundings(clock=clock, say=said.append, move=lambda moved: moves.append(dict(moved)))
    source = FilesSource(OneFile(path), positions={}, rules=ReadingRules(), watch=True, around=around)
    assert texts(drain(source)) == ["a", "b"]
    before = write(tmp_path / rotated, json_line("a"), json_line("b"), json_line("late"))
    if how == "rename":
        path.unlink()
        clock.now_s = source.next_look_s
        assert texts(drain(source)) == ["late"], "the new log is not there yet"
    write(path, json_line("new"))
    clock.now_s = source.next_look_s
    assert sorted(texts(drain(source))) == (["late", "new"] if how != "rename" else ["new"])
    assert moves == [{"rows.jsonl": rotated}]
    assert any(f"was rotated: the rest of it is taken from {before.name}" in line for line in said)


def test_a_rotation_that_happened_between_two_runs_is_followed_too(tmp_path: Path) -> None:
    clock = FakeClock()
    path = write(tmp_path / "rows.jsonl", json_line("a"))
    (taken,) = drain(make_one_file(path, watch=True, clock=clock))
    path.rename(tmp_path / "rows.jsonl.1")
    write(path, json_line("b"))
    source = make_one_file(path, watch=True, clock=clock, positions={"rows.jsonl": taken.position})
    assert texts(drain(source)) == ["b"]


def test_a_resting_last_line_without_line_end_is_told_once(tmp_path: Path) -> None:
    clock, said = FakeClock(), []
    path = write(tmp_path / "rows.jsonl", json_line("a"))
    path.write_text(path.read_text() + json_line("b"))
    source = make_one_file(path, watch=True, clock=clock, said=said)
    for _ in range(4):
        drain(source)
        clock.now_s = source.next_look_s
    assert said == [f"{path}: the last line has no line end yet, and is taken when it has one"]


def test_csv_rows_with_line_breaks_that_are_being_written_are_left_for_later(tmp_path: Path) -> None:
    clock = FakeClock()
    path = write(tmp_path / "rows.csv", "text,label", "one,x", '"two')
    source = make_one_file(path, watch=True, clock=clock)
    assert [taken.row for taken in drain(source)] == [Row(2, {"text": "one", "label": "x"})]
    with path.open("a") as stream:
        stream.write('lines",y\n')
    clock.now_s = source.next_look_s
    assert [taken.row for taken in drain(source)] == [Row(4, {"text": "two\nlines", "label": "y"})]


def test_bad_rows_keep_their_line_numbers(make_source: Callable[[str], FilesSource]) -> None:
    (taken,) = drain(make_source("\n\n[1, 2]\n"))
    assert isinstance(taken.row, BadRow)
    assert taken.row.line == 3


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[[str], FilesSource]:
    def make(content: str) -> FilesSource:
        path = tmp_path / "rows.jsonl"
        path.write_text(content)
        return make_one_file(path, watch=False, clock=FakeClock())

    return make
