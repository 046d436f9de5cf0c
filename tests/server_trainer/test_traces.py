"""Looking for many short strings of bytes in whole files, at any place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sf_server.store.traces import BLOCK_BYTES, TRACE_BYTES, Traces, traces_of


def _noise(seed: int, nbytes: int) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


@given(shift=st.integers(0, 40), seed=st.integers(0, 1000))
def test_a_trace_is_found_at_any_place(shift: int, seed: int) -> None:
    piece = _noise(seed, TRACE_BYTES)
    content = _noise(seed + 1, shift) + piece + _noise(seed + 2, 9)
    assert Traces([piece]).found_in(content) == {piece}


def test_half_a_trace_is_none() -> None:
    piece = _noise(1, TRACE_BYTES)
    traces = Traces([piece])
    assert traces.found_in(_noise(2, 50) + piece[:-1]) == frozenset()
    assert traces.found_in(piece[:8] + _noise(3, 50)) == frozenset()
    assert traces.found_in(b"") == frozenset()


def test_traces_that_lie_across_the_pieces_a_file_is_read_in_are_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sf_server.store.traces._CHUNK_BYTES", 64)
    content = _noise(5, 2000)
    pieces = [content[start : start + TRACE_BYTES] for start in range(0, 1984, 31)]
    (tmp_path / "file").write_bytes(content)
    assert Traces(pieces).found_in_file(tmp_path / "file") == set(pieces)


def test_every_page_of_a_sample_leaves_a_trace() -> None:
    content = _noise(7, 10 * BLOCK_BYTES)
    pieces = traces_of(content)
    assert len(pieces) == 10
    for number in range(10):
        assert Traces(pieces).found_in(content[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES])


def test_bytes_that_anybody_may_have_are_no_trace() -> None:
    assert traces_of(bytes(BLOCK_BYTES) + b"\x01" * BLOCK_BYTES) == []
    assert traces_of(_noise(1, 3000) + bytes(1000)) == [_noise(1, 3000)[-40:-24]]


def test_a_trace_is_taken_from_the_end_where_texts_that_begin_alike_differ() -> None:
    assert traces_of(_noise(1, 300)) == [_noise(1, 300)[-TRACE_BYTES:]]
    assert traces_of(_noise(1, TRACE_BYTES - 1)) == []


def test_no_trace_is_found_where_none_is_looked_for() -> None:
    assert Traces([]).found_in(_noise(1, 5000)) == frozenset()
