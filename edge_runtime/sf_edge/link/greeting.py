"""Asking a server how it secures its link: the first 64 bytes of ZeroMQ's protocol (ZMTP 3, RFC 23), spoken by hand.

A handshake that fails does not tell whether the server's key is another one or whether the server does not encrypt. The
greeting that comes before it does, to anybody who asks.
"""

from __future__ import annotations

import enum
import socket
from typing import Final

GREETING_BYTES: Final = 64
_OPENING: Final = b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03"
"""Signature and major version: enough for the other side to send its whole greeting, and no handshake begins."""

_MECHANISM: Final = slice(12, 32)


class Greeting(enum.Enum):
    """How a server introduces itself."""

    ENCRYPTED = "encrypted"
    IN_THE_CLEAR = "in-the-clear"
    NOT_ZEROMQ = "not-zeromq"


def ask_greeting(host: str, port: int, *, timeout_s: float) -> Greeting:
    """Connect, read the server's greeting, hang up. Every single wait takes at most `timeout_s`.

    Raises:
        OSError: no connection comes about (`socket.gaierror`: the name has no address; `ConnectionRefusedError`: nobody
            listens; `TimeoutError`: no answer).
    """
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        try:
            connection.sendall(_OPENING)
            greeting = _read(connection)
        except OSError:
            return Greeting.NOT_ZEROMQ
    return _judged(greeting)


def _read(connection: socket.socket) -> bytes:
    greeting = b""
    while len(greeting) < GREETING_BYTES:
        part = connection.recv(GREETING_BYTES - len(greeting))
        if not part:
            break
        greeting += part
    return greeting


def _judged(greeting: bytes) -> Greeting:
    if len(greeting) < GREETING_BYTES or greeting[0] != 0xFF or not greeting[9] & 1:
        return Greeting.NOT_ZEROMQ
    match greeting[_MECHANISM].rstrip(b"\0"):
        case b"CURVE":
            return Greeting.ENCRYPTED
        case b"NULL":
            return Greeting.IN_THE_CLEAR
        case _:
            return Greeting.NOT_ZEROMQ
