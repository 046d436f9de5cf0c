"""What libzmq 4.3.5 must not be asked for: each of these once ended the process, or kept a connection for ever."""

from __future__ import annotations

import zmq

from sf_server.link.router import _WATCHED, Router


def test_zeromqs_own_heartbeat_is_off_and_tcp_notices_vanished_peers() -> None:
    with Router("tcp://127.0.0.1:*") as router:
        assert router._socket.getsockopt(zmq.HEARTBEAT_IVL) == 0
        assert router._socket.getsockopt(zmq.TCP_KEEPALIVE) == 1
        assert 0 < router._socket.getsockopt(zmq.TCP_MAXRT) <= 60_000


def test_failed_handshakes_are_not_watched() -> None:
    assert not _WATCHED & zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
