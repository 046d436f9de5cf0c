"""Opening what somebody else may have put there never waits, and never follows what it should not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sf_contract.plain_files import NotAPlainFile, open_plain, read_plain


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file of five bytes."""
    path = tmp_path / "plain"
    path.write_bytes(b"bytes")
    return path


def test_a_plain_file_is_read_up_to_a_limit(plain: Path) -> None:
    assert read_plain(plain, max_bytes=5) == b"bytes"
    assert read_plain(plain, max_bytes=4) is None
    with open_plain(plain) as stream:
        assert stream.read() == b"bytes"


def test_a_link_is_followed_only_where_that_was_asked_for(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(plain)
    with pytest.raises(NotAPlainFile):
        open_plain(tmp_path / "link")
    assert read_plain(tmp_path / "link", max_bytes=9, follow_links=True) == b"bytes"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_pipe_put_there_after_the_first_look_is_noticed_without_waiting(
    plain: Path, tmp_path: Path, follow_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = plain.stat()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(Path, "lstat", lambda path: looked)
    monkeypatch.setattr(Path, "stat", lambda path: looked)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NotAPlainFile):
        open_plain(tmp_path / "pipe", follow_links=follow_links)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_put_there_after_the_first_look_is_not_followed(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = plain.stat()
    (tmp_path / "link").symlink_to(plain)
    monkeypatch.setattr(Path, "lstat", lambda path: looked)
    with pytest.raises(OSError, match="symbolic links"):
        open_plain(tmp_path / "link")
