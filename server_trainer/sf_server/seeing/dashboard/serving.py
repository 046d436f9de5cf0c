"""The HTTP server around the routes. The one door to uvicorn."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from sf_server.seeing.dashboard.address import WebAddress
from sf_server.seeing.dashboard.app import dashboard_app, metrics_app
from sf_server.seeing.dashboard.events import Events
from sf_server.seeing.dashboard.watch import READ_EVERY_S, Watch
from sf_server.seeing.reading import RunReader

MAX_CONNECTIONS: Final = 128
KEEP_ALIVE_S: Final = 2
LAST_WORDS_S: Final = 3
MAX_HEADER_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A listening socket, and the address it was given, with its real port."""

    socket: socket.socket
    address: WebAddress


def serve(reader: RunReader, *, dashboard: Opened | None, metrics: Opened | None, run_ends: bool) -> None:
    """Serve until SIGTERM or SIGINT; open pages hear that it ends.

    Args:
        reader: of the run; closed at the end.
        run_ends: the run ends with this server.
    """
    watch = Watch(reader.read, clock=time.monotonic)
    by_port: dict[int, ASGIApp] = {}
    server = uvicorn.Server(_config(_ByPort(by_port)))
    if dashboard is not None:
        events = Events(
            watch, stopping=lambda: server.should_exit, wall=time.time, every_s=READ_EVERY_S, run_ends=run_ends
        )
        by_port[dashboard.address.port] = dashboard_app(watch, events, dashboard.address)
    if metrics is not None:
        by_port[metrics.address.port] = metrics_app(watch, metrics.address)
    try:
        server.run(sockets=_sockets([dashboard, metrics]))
    finally:
        watch.close(reader.close)


class _ByPort:
    """Both addresses are served by one server: the port a request came to decides."""

    def __init__(self, apps: dict[int, ASGIApp]) -> None:
        self._apps = apps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._apps[scope["server"][1]](scope, receive, send)


def _sockets(opened: Sequence[Opened | None]) -> list[socket.socket]:
    return [one.socket for one in opened if one is not None]


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        http="h11",
        ws="none",
        loop="asyncio",
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_WORDS_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
