"""Checking a GGUF file's header against its size, before a library reads it and believes every number in it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from sf_contract.errors import ModelError
from sf_contract.plain_files import open_plain

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_NESTING: Final = 2
_MAX_ITEMS: Final = 16_000_000
"""Items of all arrays together; the reader keeps an object for each. A vocabulary of 256 k with merges has 1.3 million."""
_MAX_DIMENSIONS: Final = 4
_MAX_NAME_BYTES: Final = 1 << 16
_DEFAULT_ALIGNMENT: Final = 32
_MAX_ALIGNMENT: Final = 1 << 20
_MIN_ENTRY_BYTES: Final = 12
_MIN_TENSOR_BYTES: Final = 24


class _Damaged(Exception):
    """What is wrong; `check_gguf` adds the file."""


@dataclass(slots=True)
class _Reader:
    """Reads little-endian values in order, never beyond the end."""

    content: mmap.mmap
    at: int = 0
    items: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return len(self.content) - self.at

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self.left:
            raise _Damaged(f"{what} at byte {self.at:,} needs {nbytes:,} bytes, and {self.left:,} are left")
        self.at += nbytes
        return self.content[self.at - nbytes : self.at]

    def skip(self, nbytes: int, what: str) -> None:
        if nbytes > self.left:
            raise _Damaged(f"{what} at byte {self.at:,} needs {nbytes:,} bytes, and {self.left:,} are left")
        self.at += nbytes

    def number(self, code: str, what: str) -> int:
        layout = struct.Struct("<" + code)
        return int(layout.unpack(self.take(layout.size, what))[0])

    def text(self, what: str) -> str:
        length = self.number("Q", what)
        if length > _MAX_NAME_BYTES:
            raise _Damaged(f"claims {length:,} bytes for {what} at byte {self.at:,}")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise _Damaged(f"{what} before byte {self.at:,} is not UTF-8") from None


def check_gguf(path: Path) -> None:
    """Refuse what is not one whole GGUF file of version 2 or 3.

    Raises:
        ModelError: saying what was expected, and what was found where.
    """
    try:
        with open_plain(path, follow_links=True) as stream:
            if len(head := stream.read(8)) < 8 or head[:4] != _MAGIC:
                raise _Damaged(f"is not a GGUF file: it begins with {head[:4]!r}, expected {_MAGIC!r}")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _check(_Reader(content, at=4))
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ModelError(f"{path} cannot be read: {reason}", cure="check the path") from problem
    except _Damaged as problem:
        raise ModelError(f"{path} {problem}", cure="give one whole .gguf file (format version 2 or 3)") from problem


def _check(reader: _Reader) -> None:
    version = reader.number("I", "the version")
    if version not in _VERSIONS:
        raise _Damaged(f"has GGUF version {version}; known are 2 and 3")
    tensors = reader.number("Q", "the number of tensors")
    entries = reader.number("Q", "the number of entries")
    for number, what, least in ((tensors, "tensors", _MIN_TENSOR_BYTES), (entries, "entries", _MIN_ENTRY_BYTES)):
        if not 0 < number * least <= reader.left:
            raise _Damaged(f"claims {number:,} {what} in {len(reader.content):,} bytes")
    for _ in range(entries):
        _check_entry(reader)
    if (parts := reader.numbers.get("split.count", 1)) > 1:
        raise _Damaged(f"is one of {parts} parts of a model; merge them first (llama-gguf-split --merge)")
    ends = [_tensor_end(reader) for _ in range(tensors)]
    start = -(-reader.at // _alignment(reader)) * _alignment(reader)
    if start + max(ends) > len(reader.content):
        raise _Damaged(f"is cut off: its tensors end at byte {start + max(ends):,}, it has {len(reader.content):,}")


def _check_entry(reader: _Reader) -> None:
    key = reader.text("a key")
    kind = reader.number("I", f"the type of {key!r}")
    if kind in _SCALARS and _SCALARS[kind] not in "fd":
        reader.numbers[key] = reader.number(_SCALARS[kind], key)
    else:
        _skip_value(reader, kind, key, depth=0)


def _skip_value(reader: _Reader, kind: int, key: str, *, depth: int) -> None:
    if kind in _SCALARS:
        reader.skip(struct.calcsize("<" + _SCALARS[kind]), key)
    elif kind == _STRING:
        reader.skip(reader.number("Q", key), key)
    elif kind == _ARRAY and depth < _MAX_NESTING:
        _skip_array(reader, key, depth=depth)
    else:
        raise _Damaged(f"has an unknown type ({kind}) of the entry {key!r}")


def _skip_array(reader: _Reader, key: str, *, depth: int) -> None:
    kind = reader.number("I", key)
    length = reader.number("Q", key)
    reader.items += length
    if length > reader.left or reader.items > _MAX_ITEMS:
        raise _Damaged(f"claims {length:,} items in the entry {key!r}, and {reader.left:,} bytes are left")
    if kind in _SCALARS:
        reader.skip(length * struct.calcsize("<" + _SCALARS[kind]), key)
        return
    for _ in range(length):
        _skip_value(reader, kind, key, depth=depth + 1)


def _tensor_end(reader: _Reader) -> int:
    """Where the tensor ends, in bytes from the start of all tensors."""
    name = reader.text("a tensor's name")
    dimensions = reader.number("I", f"the shape of {name}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise _Damaged(f"gives the tensor {name!r} {dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are possible")
    elements = math.prod(reader.number("Q", f"the shape of {name}") for _ in range(dimensions))
    kind = reader.number("I", f"the type of {name}")
    offset = reader.number("Q", f"the offset of {name}")
    try:
        block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _Damaged(f"gives the tensor {name!r} the unknown type {kind}") from None
    if elements == 0 or elements % block:
        raise _Damaged(f"gives the tensor {name!r} {elements:,} elements, expected a multiple of {block}")
    return int(offset + elements // block * nbytes)


def _alignment(reader: _Reader) -> int:
    alignment = reader.numbers.get("general.alignment", _DEFAULT_ALIGNMENT)
    if alignment <= 0 or alignment & (alignment - 1) or alignment > _MAX_ALIGNMENT:
        raise _Damaged(f"has the alignment {alignment}, which is no power of two")
    return alignment
