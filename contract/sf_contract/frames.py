"""Wire frames: `[magic+version, JSON header, one raw frame per buffer]`.

The JSON header is `{"buffers": [{"dtype", "shape"}, ...], "message": {...}}`. Everything is checked against
`sf_contract.limits` before it is parsed or viewed; buffers are views of the received bytes, never copies.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from sf_contract import limits
from sf_contract.errors import MAX_SHOWN, MalformedMessage, one_line
from sf_contract.messages import PROTOCOL_VERSION, AnyMessage

MAGIC: Final = b"SFZ" + bytes([PROTOCOL_VERSION])

Buffer = npt.NDArray[np.generic]
RawFrame = bytes | bytearray | memoryview


class BufferDtype(enum.StrEnum):
    """Dtypes a buffer may have; multi-byte values are little-endian."""

    INT8 = "int8"
    UINT8 = "uint8"
    INT32 = "int32"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The little-endian NumPy dtype."""
        return np.dtype(self.value).newbyteorder("<")


class BufferSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Dtype and shape of one raw frame."""

    dtype: BufferDtype
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**31)], ...], Meta(min_length=1, max_length=2)]

    @property
    def nbytes(self) -> int:
        """Bytes the raw frame must have."""
        return math.prod(self.shape) * self.dtype.numpy.itemsize


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON frame."""

    message: AnyMessage
    buffers: Annotated[tuple[BufferSpec, ...], Meta(max_length=limits.MAX_BUFFERS)] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """A message with its buffers."""

    message: AnyMessage
    buffers: tuple[Buffer, ...] = ()


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Header)


def encode(message: AnyMessage, buffers: Sequence[Buffer] = ()) -> list[bytes | memoryview]:
    """Frames of a message, ready for a multipart send.

    Raises:
        MalformedMessage: the message would break a limit that the receiver enforces.
    """
    specs = tuple(BufferSpec(dtype=BufferDtype(array.dtype.name), shape=array.shape) for array in buffers)
    header = _encoder.encode(Header(message=message, buffers=specs))
    if len(header) > limits.MAX_HEADER_BYTES:
        raise MalformedMessage(f"a header of {len(header)} bytes exceeds the limit of {limits.MAX_HEADER_BYTES}")
    for spec in specs:
        _check_buffer_size(spec)
    return [MAGIC, header, *(_little_endian_bytes(array) for array in buffers)]


def decode(frames: Sequence[RawFrame]) -> Envelope:
    """The message in frames from outside.

    Raises:
        MalformedMessage: for any bytes that `encode` does not produce.
    """
    if not 2 <= len(frames) <= 2 + limits.MAX_BUFFERS:
        raise MalformedMessage(f"a message has 2 to {2 + limits.MAX_BUFFERS} frames, this one has {len(frames)}")
    _check_magic(frames[0])
    header = _decode_header(frames[1])
    raw = frames[2:]
    if len(raw) != len(header.buffers):
        raise MalformedMessage(f"the header announces {len(header.buffers)} buffers, {len(raw)} came")
    return Envelope(header.message, tuple(map(_view, header.buffers, raw)))


def _check_magic(frame: RawFrame) -> None:
    found = bytes(frame[: len(MAGIC) + 1])
    if found == MAGIC:
        return
    if found[:3] == MAGIC[:3] and len(found) == len(MAGIC):
        raise MalformedMessage(f"the other side speaks protocol version {found[3]}, this side {PROTOCOL_VERSION}")
    raise MalformedMessage("the first frame is not SplitFrozen's")


def _decode_header(frame: RawFrame) -> Header:
    if len(frame) > limits.MAX_HEADER_BYTES:
        raise MalformedMessage(f"a header of {len(frame)} bytes exceeds the limit of {limits.MAX_HEADER_BYTES}")
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        said = one_line(str(problem)[:MAX_SHOWN])  # it may quote names of fields, which the sender chose
        raise MalformedMessage(f"the header is not a message of this protocol: {said}") from problem


def _check_buffer_size(spec: BufferSpec) -> None:
    if spec.nbytes > limits.MAX_BUFFER_BYTES:
        raise MalformedMessage(f"a buffer of {spec.nbytes} bytes exceeds the limit of {limits.MAX_BUFFER_BYTES}")


def _view(spec: BufferSpec, frame: RawFrame) -> Buffer:
    _check_buffer_size(spec)
    if len(frame) != spec.nbytes:
        raise MalformedMessage(
            f"a buffer of {spec.dtype.value} {list(spec.shape)} has {spec.nbytes} bytes, its frame {len(frame)}"
        )
    return np.frombuffer(frame, dtype=spec.dtype.numpy).reshape(spec.shape)


def _little_endian_bytes(array: Buffer) -> memoryview:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data
