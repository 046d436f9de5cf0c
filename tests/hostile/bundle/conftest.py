"""A good bundle to spoil, commands that judge it, and a watch over every file that is opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostile.bundle.contents import WORKING_FOLDER_FILE
from hostile.bundle.folders import SECRET
from sf_contract.command import run_command
from sf_edge.main import main as edge
from sf_export.inspection import verify_command
from support.tiny_bundle import write_tiny_bundle

_opened: list[str] | None = None


def _note_opening(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note_opening)  # for the rest of the process, as all of them; it does nothing while nobody watches


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Paths of the files that Python opens meanwhile."""
    global _opened  # noqa: PLW0603 (an audit hook has no other way to be told)
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good bundle. Beside it lies a secret, and the working directory holds private texts."""
    (tmp_path / SECRET).write_text("a secret of the device " * 4)
    working = tmp_path / "working"
    working.mkdir()
    (working / WORKING_FOLDER_FILE).write_text("a private text " * 4)
    monkeypatch.chdir(working)
    return write_tiny_bundle(tmp_path / "bundle")


@dataclass(frozen=True)
class Refusal:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture(params=["sf-export verify", "sf-edge verify"])
def verify(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Callable[..., Refusal]:
    """The command that judges a bundle, on either end."""

    def run(folder: Path, *options: str) -> Refusal:
        if request.param == "sf-edge verify":
            code = edge(["verify", str(folder), *options])
        else:
            code = run_command("sf-export", verify_command, [str(folder), *options])
        said = capfd.readouterr()
        return Refusal(code=code, out=said.out, err=said.err)

    return run
