"""Standard input as the source: never waited for, never read twice."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from sf_contract.errors import DataError
from sf_contract.records import BadRow, RecordFormat, Row
from sf_edge.sources import SourcePosition
from sf_edge.sources.reading_rules import ReadingRules
from sf_edge.sources.stream import STREAM_NAME, StreamSource


class Pipe:
    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self._is_open = True

    def write(self, content: bytes) -> None:
        os.write(self._writer, content)

    def close_writer(self) -> None:
        if self._is_open:
            os.close(self._writer)
            self._is_open = False

    def close(self) -> None:
        self.close_writer()
        os.close(self.reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def make_source(pipe: Pipe, *, record_format: RecordFormat | None = None, line: int = 0) -> StreamSource:
    position = SourcePosition(line=line, nbytes=10 * line, source=STREAM_NAME)
    return StreamSource(pipe.reader, position=position, rules=ReadingRules(record_format=record_format))


def texts(source: StreamSource) -> list[str]:
    found = []
    while (taken := source.take()) is not None:
        found.append(taken.row.record["text"] if isinstance(taken.row, Row) else "bad")
    return found


def test_a_silent_pipe_gives_nothing_at_once_and_its_descriptor_tells_when_there_is_something(pipe: Pipe) -> None:
    source = make_source(pipe)
    assert source.take() is None
    assert not source.exhausted
    assert source.next_look_s == float("inf")
    assert select.select([source.wake_descriptor], [], [], 0)[0] == []
    pipe.write(b'{"text": "a"}\n{"text": "b')
    assert select.select([source.wake_descriptor], [], [], 0)[0] == [pipe.reader]
    assert texts(source) == ["a"]
    pipe.write(b'"}\n')
    assert texts(source) == ["b"]
    assert not source.exhausted


def test_the_end_of_the_pipe_ends_the_source_and_gives_a_last_line_without_its_end(pipe: Pipe) -> None:
    source = make_source(pipe)
    pipe.write(b'{"text": "a"}')
    assert source.take() is None
    pipe.close_writer()
    assert texts(source) == ["a"]
    assert source.exhausted
    assert source.wake_descriptor is None


def test_the_flags_of_the_descriptor_are_left_as_they_are(pipe: Pipe) -> None:
    source = make_source(pipe)
    source.take()
    assert os.get_blocking(pipe.reader)


def test_line_numbers_and_bytes_go_on_after_a_restart(pipe: Pipe) -> None:
    source = make_source(pipe, line=7)
    pipe.write(b'\n{"text": "a"}\nnonsense\n')
    first, second = source.take(), source.take()
    assert first is not None
    assert second is not None
    assert (first.row.line, first.position.line, first.position.nbytes) == (9, 9, 70 + 15)
    assert isinstance(second.row, BadRow)
    assert second.row.line == 10
    assert first.position.source == STREAM_NAME
    assert first.where == "standard input"


def test_other_formats_are_read_when_named(pipe: Pipe) -> None:
    source = make_source(pipe, record_format=RecordFormat.CSV)
    pipe.write(b"text,label\none,x\n")
    assert texts(source) == ["one"]
    pipe.write(b'"two\n')
    assert texts(source) == []
    pipe.write(b'lines",y\n')
    assert texts(source) == ["two\nlines"]


def test_no_more_is_read_than_is_asked_for(pipe: Pipe) -> None:
    source = make_source(pipe, record_format=RecordFormat.TEXT)
    line = b"x" * 999 + b"\n"
    pipe.write(line * 60)
    assert source.take() is not None
    left = 0
    while select.select([pipe.reader], [], [], 0)[0]:
        left += len(os.read(pipe.reader, 1 << 16))
    assert left >= 50 * len(line), "what is not computed yet stays in the pipe"


def test_binary_input_is_refused_and_a_closed_descriptor_is_named(pipe: Pipe, tmp_path: Path) -> None:
    source = make_source(pipe)
    pipe.write(b"\x00\x01\x02\n")
    with pytest.raises(DataError, match="standard input is not UTF-8 text"):
        source.take()
    closed = StreamSource(os.open(tmp_path, os.O_RDONLY), position=SourcePosition(), rules=ReadingRules())
    with pytest.raises(DataError, match="standard input cannot be read: Is a directory"):
        closed.take()
    os.close(closed.wake_descriptor or 0)
