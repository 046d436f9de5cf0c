"""The page's own files, read once from the package: nothing a request says ever names a file on the disk."""

from __future__ import annotations

from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER: Final = "page"
INDEX: Final = "index.html"
MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def page_routes() -> list[Route]:
    """`/` and one route for every file beside it."""
    files = {file.name: file.read_bytes() for file in _folder().iterdir() if _ending(file.name) in MEDIA_TYPES}
    return [_route("/" if name == INDEX else f"/{name}", name, content) for name, content in sorted(files.items())]


def _folder() -> resources.abc.Traversable:
    return resources.files(__package__) / FOLDER


def _ending(name: str) -> str:
    return name.rpartition(".")[2]


def _route(path: str, name: str, content: bytes) -> Route:
    def answer(request: Request) -> Response:
        del request
        return Response(content, media_type=MEDIA_TYPES[_ending(name)], headers={"Cache-Control": "no-cache"})

    return Route(path, answer, methods=["GET"])
