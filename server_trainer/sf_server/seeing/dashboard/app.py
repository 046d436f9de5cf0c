"""The routes of the dashboard, and those of the metrics address."""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sf_server.seeing.dashboard.address import WebAddress
from sf_server.seeing.dashboard.events import Events
from sf_server.seeing.dashboard.guard import Guard
from sf_server.seeing.dashboard.pages import page_routes
from sf_server.seeing.dashboard.watch import Watch
from sf_server.seeing.prometheus import CONTENT_TYPE, prometheus_text

JSON: Final = "application/json"


def dashboard_app(watch: Watch, events: Events, address: WebAddress) -> ASGIApp:
    """Everything: the page, its events, the state as JSON, metrics, health."""
    routes = [*page_routes(), Route("/events", events), _state_route(watch), *_machine_routes(watch)]
    return Guard(Starlette(routes=routes), address)


def metrics_app(watch: Watch, address: WebAddress) -> ASGIApp:
    """Only what another machine may need: metrics and health."""
    return Guard(Starlette(routes=_machine_routes(watch)), address)


def _state_route(watch: Watch) -> Route:
    async def state(request: Request) -> Response:
        del request
        seen = await watch.look()
        return Response(seen.whole, media_type=JSON, status_code=503 if seen.state is None else 200)

    return Route("/state.json", state, methods=["GET"])


def _machine_routes(watch: Watch) -> list[Route]:
    async def metrics(request: Request) -> Response:
        del request
        seen = await watch.look()
        if seen.state is None:
            return Response(seen.whole, media_type=JSON, status_code=503)
        return Response(prometheus_text(seen.state), headers={"Content-Type": CONTENT_TYPE})

    def health(request: Request) -> Response:
        del request
        return PlainTextResponse("ok\n")

    return [Route("/metrics", metrics, methods=["GET"]), Route("/healthz", health, methods=["GET"])]
