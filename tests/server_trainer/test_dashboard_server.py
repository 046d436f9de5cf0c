"""The dashboard's server as a real process, asked by hand; the page itself is tested in a browser (tests/browser)."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from sf_contract.limits import MIB
from sf_server.seeing.dashboard.events import MAX_VIEWERS
from sf_server.seeing.state import RunState
from support.processes import Command
from support.seen_run import SeenRun
from support.tiny_bundle import write_tiny_bundle
from support.web import PATIENCE_S, Events, ask, served

FILES = ("/", "/app.js", "/chart.js", "/dashboard.css", "/icon.svg")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeenRun]:
    run = SeenRun(tmp_path_factory.mktemp("seen"), now_s=time.time())
    run.hello("pi-1")
    run.samples("pi-1", 40)
    run.steps(2, epoch=1)
    with run.worked_on():
        yield run
    run.close()


@pytest.fixture(scope="module")
def url(run: SeenRun) -> Iterator[str]:
    with served(run.path, run.path.parent / "log") as (url, _):
        yield url


@pytest.mark.parametrize("path", FILES)
def test_every_answer_forbids_whatever_the_page_does_not_need(url: str, path: str) -> None:
    answer = ask(url, path)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers


def test_the_page_needs_nothing_from_elsewhere(url: str) -> None:
    page = ask(url).body.decode()
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    modules = {name for name in named if name.endswith(".js")}
    seen: set[str] = set()
    while modules - seen:
        name = (modules - seen).pop()
        seen.add(name)
        source = ask(url, f"/{name}")
        assert source.headers["content-type"] == "text/javascript; charset=utf-8"
        modules |= set(re.findall(r'from "\./([^"]+)"', source.body.decode()))
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", source.body.decode()) == []
    assert len(seen) > 5
    assert [name for name in named if ask(url, f"/{name}").status != 200] == []
    assert "<script>" not in page
    assert 'style="' not in page


def test_programs_get_the_state_the_metrics_and_a_sign_of_life(url: str) -> None:
    state = msgspec.json.decode(ask(url, "/state.json").body, type=RunState)
    assert [device.name for device in state.devices] == ["pi-1"]
    metrics = ask(url, "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"splitfrozen_" in metrics.body
    assert ask(url, "/healthz").body == b"ok\n"
    assert ask(url, "/healthz", method="HEAD").status == 200
    assert ask(url, "/events", method="HEAD").status == 405


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/events", "/state.json"])
def test_nothing_can_be_changed(url: str, method: str, path: str) -> None:
    assert ask(url, path, method=method).status == 405


@pytest.mark.parametrize("path", ["/", "/events", "/state.json", "/metrics", "/healthz", "/nothing"])
def test_a_name_that_somebody_else_may_point_here_gets_no_answer(url: str, path: str) -> None:
    answer = ask(url, path, headers={"Host": f"evil.example:{urlsplit(url).port}"})
    assert answer.status == 421
    assert b"pi-1" not in answer.body


def test_a_tunnels_port_and_localhost_are_answered(url: str) -> None:
    assert ask(url, "/state.json", headers={"Host": "localhost:9999"}).status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("path", ["/events", "/state.json", "/app.js"])
def test_pages_of_other_sites_may_neither_read_nor_occupy_anything(url: str, path: str, site: str) -> None:
    assert ask(url, path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}).status == 403
    assert ask(url, path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}).status == 403


def test_a_link_from_elsewhere_may_be_followed(url: str) -> None:
    assert ask(url, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status == 200


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/page/app.js", "/index.html/", "/../settings.json", "/%2e%2e/settings.json", "/settings.json",
     "/store.sqlite", "//etc/passwd", "/app.js%00", "/.."],
)  # fmt: skip
def test_only_the_pages_own_files_have_names(url: str, path: str) -> None:
    assert ask(url, path).status == 404


def test_a_page_gets_the_state_and_then_only_what_changes(run: SeenRun, url: str) -> None:
    with Events(url) as events:
        assert events.kind.startswith("text/event-stream")
        name, state = events.next()
        assert name == "state"
        assert [device["name"] for device in state["devices"]] == ["pi-1"]
        run.hello("pi-2", now_s=time.time())
        run.samples("pi-2", 5)
        change = events.until("change")
        assert [device["name"] for device in change["devices"]] == ["pi-2"]
        assert "run" not in change
        assert change["taken_s"] >= state["taken_s"]


def test_only_so_many_pages_may_be_open_and_one_that_leaves_makes_room(url: str) -> None:
    opened = [Events(url) for _ in range(MAX_VIEWERS)]
    try:
        assert [events.next()[0] for events in opened] == ["state"] * MAX_VIEWERS
        with Events(url) as refused:
            assert refused.status == 503
        assert ask(url, "/state.json").status == 200
        opened.pop().close()
        deadline_s = time.monotonic() + PATIENCE_S
        while (again := Events(url)).status == 503:
            again.close()
            assert time.monotonic() < deadline_s
        opened.append(again)
        assert again.next()[0] == "state"
    finally:
        for events in opened:
            events.close()


def test_a_request_with_endless_headers_is_cut_off(url: str) -> None:
    where = urlsplit(url)
    with socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=PATIENCE_S) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"x" * 4 * MIB)
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert ask(url, "/healthz").status == 200


def test_a_run_that_cannot_be_read_is_said_and_then_seen_again(tmp_path: Path) -> None:
    run = SeenRun(tmp_path, now_s=time.time())
    settings = run.folder.settings_path.read_bytes()
    with served(run.path, tmp_path / "log") as (url, command), Events(url) as events:
        assert events.next()[0] == "state"
        run.folder.settings_path.write_text("{")
        assert "settings.json" in events.until("trouble")["error"]
        answer = ask(url, "/state.json")
        assert answer.status == 503
        assert "cure" in json.loads(answer.body)
        assert ask(url, "/metrics").status == 503
        run.folder.settings_path.write_bytes(settings)
        assert events.until("state")["phase"] == "stopped"
        command.process.send_signal(signal.SIGTERM)
        assert events.until("end") == {"run_ends": False}
        command.process.wait(PATIENCE_S)
    run.close()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_folder_without_a_run_is_a_mistake_with_a_cure(tmp_path: Path) -> None:
    with Command(["sf-server", "dashboard", "--run", tmp_path], tmp_path / "log") as command:
        code, said = command.fail()
    assert (code, "there is no run in" in said) == (2, True)


def test_a_port_in_use_is_a_mistake_with_a_cure(run: SeenRun, url: str, tmp_path: Path) -> None:
    bind = urlsplit(url).netloc
    with Command(["sf-server", "dashboard", "--run", run.path, "--bind", bind], tmp_path / "log") as command:
        code, said = command.fail()
    assert code == 18
    assert f"--bind {bind}: another program listens there. Cure: " in said


def test_training_does_not_begin_when_its_dashboards_port_is_taken(url: str, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle")
    options = ["--bundle", tmp_path / "bundle", "--run", tmp_path / "run", "--expect-devices", "1"]
    taken = urlsplit(url).netloc
    with Command(["sf-server", "train", *options, "--dashboard", taken], tmp_path / "log") as command:
        code, said = command.fail()
    assert code == 18
    assert f"--dashboard {taken}" in said
    assert not (tmp_path / "run" / "settings.json").exists()


def test_the_supervisors_process_serves_metrics_alone_where_only_they_were_asked_for(tmp_path: Path) -> None:
    run = SeenRun(tmp_path, now_s=time.time(), metrics_address="127.0.0.1:0", expect_devices=1)
    command = [sys.executable, "-m", "sf_server.seeing.process", "--run", str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        found = re.search(r"http://[^/]+/", process.stderr.readline())
        assert found is not None
        assert ask(found[0], "/metrics").status == 200
        assert [ask(found[0], path).status for path in ("/", "/events", "/state.json")] == [404] * 3
        assert ask(found[0], "/metrics", headers={"Host": "evil.example"}).status == 421
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 129
    run.close()
