"""Connections of this process by their descriptor: what one has received, and ending it. ZeroMQ keeps owning the descriptor."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_BYTES_RECEIVED: Final = struct.Struct("@128xQ")
"""`tcpi_bytes_received` of Linux's `struct tcp_info` (linux/tcp.h), there since Linux 4.1."""


def received_bytes(descriptor: int) -> int | None:
    """Bytes that a TCP connection has received since it was made; None when it is none or the system does not tell."""
    try:
        with _borrowed(descriptor) as connection:
            answer = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    except OSError:
        return None
    return int(_BYTES_RECEIVED.unpack(answer)[0]) if len(answer) == _BYTES_RECEIVED.size else None


def end_connection(descriptor: int) -> None:
    """End a connection; its owner notices as if the other side had. Does nothing to what is no socket."""
    with contextlib.suppress(OSError), _borrowed(descriptor) as connection:
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    borrowed = socket.socket(fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()
