"""A GGUF header is held against the size of its file before a library believes it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

from sf_contract.errors import ModelError
from sf_model.gguf_header import check_gguf

STRING, ARRAY, UINT32, FLOAT32 = 8, 9, 4, 6


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _tensor(name: str = "t", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, offset)


def _file(
    entries: tuple[bytes, ...] = (_entry("a", UINT32, struct.pack("<I", 1)),),
    tensors: tuple[bytes, ...] = (_tensor(),),
    *,
    counts: tuple[int, int] | None = None,
    version: int = 3,
    data: int = 32,
) -> bytes:
    numbers = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *numbers) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def _check(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    check_gguf(path)


def test_whole_files_pass(tiny_gguf, tmp_path):
    check_gguf(tiny_gguf)
    _check(tmp_path, _file())
    _check(tmp_path, _file(version=2))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a GGUF file"),
        (b"GGUF", "not a GGUF file"),
        (b"PK\x03\x04" + bytes(60), "begins with b'PK"),
        (b"GGUF" + bytes(8), "version 0"),
        (_file(version=9), "version 9"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "version 50331648"),
        (_file(counts=(1, 0)), "claims 0 entries"),
        (_file(counts=(0, 1)), "claims 0 tensors"),
        (_file(counts=(1 << 63, 1)), "claims 9,223,372,036,854,775,808 tensors"),
        (_file(counts=(1, 1 << 40)), "claims 1,099,511,627,776 entries"),
        (_file(counts=(2, 1)), "needs|dimensions"),
        (_file((_entry("s", STRING, struct.pack("<Q", 1 << 50)),)), "needs 1,125,899,906,842,624 bytes"),
        (_file((struct.pack("<Q", 1 << 50),)), "claims 1,125,899,906,842,624 bytes for a key"),
        (_file((_entry("x", ARRAY, struct.pack("<IQ", UINT32, 1 << 60)),)), "claims .* items in the entry 'x'"),
        (_file((_entry("x", ARRAY, struct.pack("<IQIQIQIQ", 9, 1, 9, 1, 9, 1, 4, 0)),)), "unknown type"),
        (_file((_entry("x", 77, b""),)), r"unknown type \(77\)"),
        (_file((_text("\u00e4")[:-1] + b"\xff" + struct.pack("<II", 4, 1),)), "not UTF-8"),
        (_file(tensors=(_tensor(shape=()),)), "0 dimensions"),
        (_file(tensors=(_tensor(shape=(1,) * 5),)), "5 dimensions"),
        (_file(tensors=(_tensor(shape=(0,)),)), "0 elements"),
        (_file(tensors=(_tensor(shape=(1 << 62, 1 << 62)),)), "cut off: its tensors end at byte"),
        (_file(tensors=(_tensor(kind=250),)), "unknown type 250"),
        (_file(tensors=(_tensor(shape=(33,), kind=8),)), "multiple of 32"),
        (_file(tensors=(_tensor(offset=1 << 40),)), "cut off"),
        (_file(data=31), "cut off"),
        (_file((_entry("general.alignment", UINT32, struct.pack("<I", 24)),)), "alignment 24"),
        (_file((_entry("general.alignment", UINT32, struct.pack("<I", 0)),)), "alignment 0"),
        (_file((_entry("split.count", 2, struct.pack("<H", 3)),)), "one of 3 parts"),
    ],
)
def test_what_is_not_one_whole_file_is_refused(tmp_path, content, words):
    with pytest.raises(ModelError, match=words) as caught:
        _check(tmp_path, content)
    assert "model.gguf" in str(caught.value)


def test_every_cut_of_a_real_file_is_noticed(tiny_gguf, tmp_path):
    whole = tiny_gguf.read_bytes()
    for length in [*range(0, 3000, 41), len(whole) // 2, len(whole) - 1]:
        with pytest.raises(ModelError):
            _check(tmp_path, whole[:length])


@settings(deadline=None)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=12))
def test_what_passes_can_be_read_and_the_rest_is_our_error(tiny_gguf, tmp_path_factory, position, patch):
    """The library may still refuse a name that is there twice; it never runs out of bytes, time or memory."""
    path = tmp_path_factory.getbasetemp() / "patched.gguf"
    content = bytearray(tiny_gguf.read_bytes())
    content[position : position + len(patch)] = patch
    path.write_bytes(content)
    try:
        check_gguf(path)
    except ModelError:
        return
    try:
        GGUFReader(path)
    except (KeyError, ValueError) as problem:
        assert "uplicate" in str(problem) or "alignment" in str(problem)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"missing\.gguf cannot be read"):
        check_gguf(tmp_path / "missing.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelError, match="not a plain file"):
        check_gguf(tmp_path / "folder.gguf")
