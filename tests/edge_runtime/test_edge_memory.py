"""Memory goes back to the system when work has stopped, and not before."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from sf_edge.memory import QUIET_S, IdleMemory, give_back_memory


@pytest.fixture
def given_back() -> list[float]:
    return []


def test_it_goes_back_once_after_some_quiet(given_back):
    memory = IdleMemory(lambda: given_back.append(1))
    for now_s in (100.0, 100.0 + QUIET_S - 0.1):
        memory.look(100.0, now_s)
    assert given_back == []
    for now_s in (100.0 + QUIET_S, 200.0, 300.0):
        memory.look(100.0, now_s)
    assert given_back == [1]


def test_steady_work_is_never_interrupted_and_the_next_quiet_gives_back_again(given_back):
    memory = IdleMemory(lambda: given_back.append(1))
    for second in range(100):
        memory.look(None, second)
        memory.look(float(second), second + 0.5)
    assert given_back == []
    memory.look(99.0, 99.0 + QUIET_S)
    memory.look(None, 110.0)
    memory.look(111.0, 111.0 + QUIET_S)
    assert given_back == [1, 1]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library cannot give memory back")
def test_free_memory_is_no_longer_counted_as_ours():
    """Many small pieces with the newest kept: free, but the C library does not give them back by itself."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        (ctypes.c_size_t,),
        (ctypes.c_void_p,),
    )
    pieces = [libc.malloc(4096) for _ in range(10_000)]
    for piece in pieces:
        ctypes.memset(piece, 1, 4096)
    for piece in pieces[:-1]:
        libc.free(piece)
    before = _resident_bytes()
    give_back_memory()
    assert before - _resident_bytes() > 20e6
    libc.free(pieces[-1])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
