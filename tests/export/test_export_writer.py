"""A bundle folder is written as a whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from sf_contract.bundle import CHECKSUM_FILE, MANIFEST_FILE, checksum_line, open_bundle
from sf_contract.errors import BundleError, DiskFull, UsageError
from sf_export import bundle_writer
from sf_export.bundle_writer import check_target, write_bundle


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_written_bundle_opens_and_nothing_else_is_left(tmp_path: Path, small_bundle) -> None:
    manifest, files = small_bundle()
    write_bundle(tmp_path / "deep" / "bundle", manifest, files)
    assert open_bundle(tmp_path / "deep" / "bundle").bundle_id == manifest.bundle_id
    assert _names(tmp_path / "deep") == ["bundle"]


def test_a_written_bundle_carries_the_checksum_of_its_manifest(tmp_path: Path, small_bundle) -> None:
    manifest, files = small_bundle()
    write_bundle(tmp_path / "bundle", manifest, files)
    assert (tmp_path / "bundle" / CHECKSUM_FILE).read_bytes() == checksum_line(manifest.bundle_id)
    assert _names(tmp_path / "bundle") == sorted([*files, CHECKSUM_FILE, MANIFEST_FILE])


def test_a_manifest_that_no_reader_would_accept_is_not_written(tmp_path: Path, small_bundle) -> None:
    manifest, files = small_bundle()
    changed = msgspec.structs.replace(manifest, tools={"torch": "2.13\n"})
    with pytest.raises(BundleError, match="tools"):
        write_bundle(tmp_path / "bundle", changed, files)
    assert _names(tmp_path) == []


@pytest.mark.timeout(60)
def test_a_folder_whose_manifest_is_a_pipe_is_no_bundle_and_nobody_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / MANIFEST_FILE)
    with pytest.raises(UsageError, match="is not a bundle"):
        check_target(tmp_path / "pipe")


def test_an_older_bundle_is_replaced(tmp_path: Path, small_bundle) -> None:
    write_bundle(tmp_path / "bundle", *small_bundle(b"old graph"))
    manifest, files = small_bundle(b"new graph")
    write_bundle(tmp_path / "bundle", manifest, files)
    assert open_bundle(tmp_path / "bundle").bundle_id == manifest.bundle_id
    assert _names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("full_at", ["front_end.onnx", "selftest.f32", "manifest.json", "manifest.sha256"])
def test_a_full_disk_leaves_nothing_behind_and_the_older_bundle_whole(
    tmp_path: Path, small_bundle, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    old, old_files = small_bundle(b"old graph")
    write_bundle(tmp_path / "bundle", old, old_files)
    write_file = bundle_writer.write_file

    def write_until_full(path: Path, content: bytes) -> None:
        if path.name == full_at:
            path.write_bytes(content[:1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_file(path, content)

    monkeypatch.setattr(bundle_writer, "write_file", write_until_full)
    with pytest.raises(DiskFull, match="no room left for the bundle"):
        write_bundle(tmp_path / "bundle", *small_bundle(b"new graph"))
    with pytest.raises(DiskFull, match="no room left for the bundle"):
        write_bundle(tmp_path / "fresh", *small_bundle(b"new graph"))
    assert _names(tmp_path) == ["bundle"]
    assert open_bundle(tmp_path / "bundle").bundle_id == old.bundle_id


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, small_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_writer, "write_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", *small_bundle())
    assert _names(tmp_path) == []


def test_an_empty_folder_may_be_filled(tmp_path: Path, small_bundle) -> None:
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", *small_bundle())
    assert open_bundle(tmp_path / "bundle").manifest.geometry.hidden == 8


def test_folders_and_files_that_are_no_bundle_are_not_touched(tmp_path: Path, small_bundle) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"jpg")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    write_bundle(tmp_path / "mixed", *small_bundle())
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    for name in ("photos", "web", "file", "link", "mixed"):
        with pytest.raises(UsageError, match="is not a bundle"):
            check_target(tmp_path / name)


def test_a_place_below_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match="cannot be written"):
        check_target(tmp_path / "file" / "bundle")
