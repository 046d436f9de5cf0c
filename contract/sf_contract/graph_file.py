"""A graph must be complete in itself: none of its weights may lie in another file.

ONNX lets a tensor point to a file by name, offset and length (`external_data`), and ONNX Runtime follows such a pointer into
the folder of the graph, or into the working directory when the graph comes from memory. A graph made by an attacker
could have a device read its own private files as weights, and send what it computes from them. So a graph is searched
for such pointers before it is loaded.

The search walks the Protocol Buffers encoding (https://protobuf.dev/programming-guides/encoding/) along every path of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto that leads to a tensor, and skips everything else; a device has no
`onnx` package.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final, NamedTuple

from sf_contract.errors import BundleError


class Kind(enum.Enum):
    """Message types that hold tensors, and the tensor."""

    MODEL = "ModelProto"
    TRAINING = "TrainingInfoProto"
    FUNCTION = "FunctionProto"
    GRAPH = "GraphProto"
    NODE = "NodeProto"
    ATTRIBUTE = "AttributeProto"
    SPARSE_TENSOR = "SparseTensorProto"
    TENSOR = "TensorProto"


PARTS: Final[dict[Kind, dict[int, Kind]]] = {
    Kind.MODEL: {7: Kind.GRAPH, 20: Kind.TRAINING, 25: Kind.FUNCTION},
    Kind.TRAINING: {1: Kind.GRAPH, 2: Kind.GRAPH},
    Kind.FUNCTION: {7: Kind.NODE, 11: Kind.ATTRIBUTE},
    Kind.GRAPH: {1: Kind.NODE, 5: Kind.TENSOR, 15: Kind.SPARSE_TENSOR},
    Kind.NODE: {5: Kind.ATTRIBUTE},
    Kind.ATTRIBUTE: {
        5: Kind.TENSOR,
        6: Kind.GRAPH,
        10: Kind.TENSOR,
        11: Kind.GRAPH,
        22: Kind.SPARSE_TENSOR,
        23: Kind.SPARSE_TENSOR,
    },
    Kind.SPARSE_TENSOR: {1: Kind.TENSOR, 2: Kind.TENSOR},
    Kind.TENSOR: {},
}
"""Field numbers that lead to a tensor."""

EXTERNAL_DATA: Final = 13
DATA_LOCATION: Final = 14
"""Fields of a tensor; the second is 0 where the values are inside."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LARGEST_KEY: Final = 2**32 - 1
_LONGEST_VARINT: Final = 10


class _Malformed(Exception):
    """The bytes are no Protocol Buffers message."""


class _Field(NamedTuple):
    """One field: `start` and `stop` of its content; `value` is the number of a varint, otherwise 0."""

    number: int
    wire_type: int
    start: int
    stop: int
    value: int


def check_self_contained(graph: bytes, *, where: str) -> None:
    """Refuse a graph with a tensor whose values lie elsewhere.

    Raises:
        BundleError: there is one, or the bytes are no Protocol Buffers message.
    """
    waiting = [(Kind.MODEL, 0, len(graph))]
    try:
        while waiting:
            kind, start, stop = waiting.pop()
            for field in _fields(graph, start, stop):
                if kind is Kind.TENSOR and _points_elsewhere(field):
                    raise _refused(f"{where} keeps weights in another file, which a bundle's graph must not")
                part = PARTS[kind].get(field.number)
                if part is not None and field.wire_type == _BYTES:
                    waiting.append((part, field.start, field.stop))
    except _Malformed as problem:
        raise _refused(f"{where} is not an ONNX graph: {problem}") from problem


def _points_elsewhere(field: _Field) -> bool:
    if field.number == DATA_LOCATION:
        return field.wire_type != _VARINT or field.value != 0
    return field.number == EXTERNAL_DATA


def _fields(raw: bytes, position: int, stop: int) -> Iterator[_Field]:
    while position < stop:
        key, position = _varint(raw, position, stop)
        if key > _LARGEST_KEY:
            raise _Malformed(f"a field number is out of range before byte {position}")
        number, wire_type = key >> 3, key & 7
        value = 0
        start = position
        if wire_type == _VARINT:
            value, end = _varint(raw, position, stop)
        elif wire_type == _BYTES:
            length, start = _varint(raw, position, stop)
            end = start + length
        elif wire_type in (_FIXED64, _FIXED32):
            end = position + (8 if wire_type == _FIXED64 else 4)
        else:
            raise _Malformed(f"wire type {wire_type} before byte {position}")
        if end > stop:
            raise _Malformed(f"a field ends behind its message at byte {position}")
        yield _Field(number, wire_type, start, end, value)
        position = end


def _varint(raw: bytes, position: int, stop: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = 0
    for index in range(position, min(position + _LONGEST_VARINT, stop)):
        value |= (raw[index] & 0x7F) << (7 * (index - position))
        if raw[index] < 0x80:
            return value, index + 1
    raise _Malformed(f"a number does not end at byte {position}")


def _refused(what: str) -> BundleError:
    return BundleError(what, cure="export the bundle again, with sf-export")
