"""Lines out of bytes: the same however the bytes come, counted, digested, and never held beyond a bound."""

from __future__ import annotations

import hashlib
import io
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from sf_contract.limits import MAX_RECORD_BYTES, MIB
from sf_contract.lines import Line, LineSplitter

_CONTENTS = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n", b"\n\n"]), max_size=30).map(b"".join)


def split(chunks: list[bytes], *, splitter: LineSplitter | None = None) -> list[Line]:
    made = splitter or LineSplitter()
    lines = []
    for chunk in chunks:
        made.feed(chunk)
        while (line := made.take()) is not None:
            lines.append(line)
    made.end()
    while (line := made.take()) is not None:
        lines.append(line)
    return lines


@given(content=_CONTENTS, size=st.integers(1, 7))
def test_lines_are_those_of_a_text_file_however_the_bytes_come(content: bytes, size: int) -> None:
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    expected = [line.rstrip("\r\n") for line in io.StringIO(content.decode(), newline="")]
    lines = split(chunks)
    assert [line.content.rstrip(b"\r\n").decode() for line in lines] == expected
    assert [line.number for line in lines] == list(range(1, len(expected) + 1))


@given(content=_CONTENTS, cut=st.integers(0, 60), size=st.integers(1, 7))
def test_reading_on_behind_any_line_gives_the_rest_and_the_same_digest(content: bytes, cut: int, size: int) -> None:
    first = LineSplitter()
    first.feed(content)
    for _ in range(cut):
        first.take()
    taken = first.nbytes
    second = LineSplitter(number=first.number)
    second.pass_over(content[:taken])
    assert second.digest() == first.digest() == hashlib.blake2b(content[:taken], digest_size=16).hexdigest()
    rest = content[taken:]
    chunks = [rest[start : start + size] for start in range(0, len(rest), size)]
    assert split(chunks, splitter=second) == split([], splitter=first)


def test_a_lone_cr_ends_a_line_once_nothing_follows_for_now_and_an_lf_after_it_is_no_line() -> None:
    splitter = LineSplitter()
    splitter.feed(b"a\r")
    assert splitter.take() is None
    splitter.pause()
    assert splitter.take() == Line(1, 0, b"a\r", is_whole=True)
    splitter.feed(b"\nb\n")
    assert splitter.take() == Line(2, 3, b"b\n", is_whole=True)


def test_the_longest_line_is_kept_whole_and_one_byte_more_is_not() -> None:
    for extra, is_whole in ((0, True), (3, False)):
        (line,) = split([b"x" * (MAX_RECORD_BYTES + extra) + b"\n"])
        assert (line.is_whole, len(line.content) <= MAX_RECORD_BYTES + 1) == (is_whole, True)


def test_a_line_of_any_length_is_counted_but_never_held() -> None:
    splitter = LineSplitter()
    chunk = b"x" * (MIB // 4)
    tracemalloc.start()
    for _ in range(40):
        splitter.feed(chunk)
        assert splitter.take() is None
    splitter.feed(b"\nnext\n")
    line, following = splitter.take(), splitter.take()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line is not None
    assert following is not None
    assert (line.number, line.start, line.is_whole) == (1, 0, False)
    assert (following.number, following.start, following.content) == (2, 10 * MIB + 1, b"next\n")
    assert peak < 5 * MIB
