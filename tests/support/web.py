"""A served dashboard, seen without a browser: requests as they are, and server-sent events one by one."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from support.processes import Command

PATIENCE_S = 20.0


@contextmanager
def served(run: Path, log: Path, *, bind: str = "127.0.0.1:0") -> Iterator[tuple[str, Command]]:
    """`sf-server dashboard` as a real process; its URL and the process."""
    with Command(["sf-server", "dashboard", "--run", run, "--bind", bind, "--json"], log) as command:
        assert command.process.stdout is not None
        line = command.process.stdout.readline()
        assert line, command.tail()
        yield json.loads(line)["url"], command


class Answer:
    """Status, headers and body."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()


def ask(url: str, path: str = "/", *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    """One request; the path goes out exactly as it is given, and so does a `Host` header."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
    try:
        connection.putrequest(method, path, skip_host=headers is not None and "Host" in headers)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        return Answer(connection.getresponse())
    finally:
        connection.close()


class Events:
    """An open `/events`."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)
        self._connection.request("GET", "/events")
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.kind = self._response.getheader("content-type", "")

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._response.close()
        self._connection.close()

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next event: its name and its content."""
        lines = [self._response.readline().decode().rstrip("\n") for _ in range(3)]
        assert lines[0].startswith("event: "), lines
        assert lines[1].startswith("data: "), lines
        assert lines[2] == "", lines
        return lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))

    def until(self, name: str) -> dict[str, Any]:
        """The content of the next event of that name."""
        while True:
            found, content = self.next()
            if found == name:
                return content
