"""Server-sent events: the state to every open page, once a second while something changes. A bounded number of pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sf_server.seeing.dashboard.watch import Seen, Watch

MAX_VIEWERS: Final = 32
ALIVE_EVERY_S: Final = 2.0
SEND_S: Final = 20.0
"""A page that takes nothing for so long is dropped."""

_HEADERS: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]


class Events:
    """The ASGI app behind `/events`.

    Args:
        watch: what is seen of the run.
        stopping: True once the server is about to leave.
        wall: seconds since 1970; the page takes its own clock for wrong where it differs.
        every_s: between two looks.
        run_ends: the run ends when we do, and pages are told so.
    """

    def __init__(
        self, watch: Watch, *, stopping: Callable[[], bool], wall: Callable[[], float], every_s: float, run_ends: bool
    ) -> None:
        self._watch = watch
        self._stopping = stopping
        self._wall = wall
        self._every_s = every_s
        self._farewell = msgspec.json.encode({"run_ends": run_ends})
        self._viewers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one page until it leaves, or we do."""
        refused = self._refusal(scope["method"])
        if refused is not None:
            await refused(scope, receive, send)
            return
        self._viewers += 1
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._feed(send, gone)
        except TimeoutError:
            pass
        finally:
            gone.cancel()
            self._viewers -= 1

    def _refusal(self, method: str) -> PlainTextResponse | None:
        if method != "GET":
            return PlainTextResponse("events can only be followed\n", status_code=405, headers={"Allow": "GET"})
        if self._viewers >= MAX_VIEWERS:
            return PlainTextResponse("too many pages are open\n", status_code=503, headers={"Retry-After": "10"})
        return None

    async def _feed(self, send: Send, gone: asyncio.Future[None]) -> None:
        version = 0
        silent_s = ALIVE_EVERY_S
        while not gone.done() and not self._stopping():
            seen = await self._watch.look()
            if seen.version != version:
                await _send(send, *_news(seen, knows=version))
                version, silent_s = seen.version, 0.0
            elif silent_s >= ALIVE_EVERY_S:
                await _send(send, "alive", msgspec.json.encode({"taken_s": self._wall()}))
                silent_s = 0.0
            await asyncio.wait([gone], timeout=self._every_s)
            silent_s += self._every_s
        if not gone.done():
            await self._say_farewell(send, await self._watch.look(), knows=version)

    async def _say_farewell(self, send: Send, seen: Seen, *, knows: int) -> None:
        if seen.version != knows:
            await _send(send, *_news(seen, knows=knows))
        await _send(send, "end", self._farewell)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _news(seen: Seen, *, knows: int) -> tuple[str, bytes]:
    if seen.state is None:
        return "trouble", seen.whole
    if seen.change is not None and seen.version == knows + 1:
        return "change", seen.change
    return "state", seen.whole


async def _send(send: Send, event: str, data: bytes) -> None:
    """JSON holds no line ends, so one `data:` line is enough."""
    body = b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"
    async with asyncio.timeout(SEND_S):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
