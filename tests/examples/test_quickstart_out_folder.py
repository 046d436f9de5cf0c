from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from out_folder import ExportRecord, OutFolder, has_bundle_of, note_export, prepare, remove_bundle

from sf_contract.errors import UsageError

RECORD = ExportRecord(model="m", split_layer=4, max_tokens=64, labels="a,b")


@pytest.fixture
def out(tmp_path: Path) -> OutFolder:
    return OutFolder(tmp_path / "out")


def finish_a_demo(out: OutFolder) -> None:
    prepare(out, keep_bundle=False)
    for folder in (out.bundle, out.run):
        folder.mkdir()
        (folder / "file").touch()
    note_export(out, RECORD)


def test_a_folder_of_something_else_is_refused_and_left_alone(out: OutFolder) -> None:
    out.path.mkdir()
    (out.path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        prepare(out, keep_bundle=False)
    assert [entry.name for entry in out.path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(out: OutFolder) -> None:
    out.path.touch()
    with pytest.raises(UsageError, match="is a file"):
        prepare(out, keep_bundle=False)


def test_a_former_demo_is_removed(out: OutFolder) -> None:
    finish_a_demo(out)
    prepare(out, keep_bundle=False)
    assert list(out.path.iterdir()) == [out.marker]
    assert not has_bundle_of(out, RECORD)


def test_links_are_removed_but_what_they_lead_to_stays(out: OutFolder, tmp_path: Path) -> None:
    finish_a_demo(out)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (out.path / "link").symlink_to(elsewhere)
    prepare(out, keep_bundle=False)
    assert (elsewhere / "file").exists()
    assert not (out.path / "link").is_symlink()


def test_a_kept_bundle_is_used_again_only_for_the_same_export(out: OutFolder) -> None:
    finish_a_demo(out)
    prepare(out, keep_bundle=True)
    assert not out.run.exists()
    assert has_bundle_of(out, RECORD)
    assert not has_bundle_of(out, msgspec.structs.replace(RECORD, split_layer=5))


def test_a_removed_bundle_is_forgotten_even_if_a_new_export_leaves_half_a_bundle(out: OutFolder) -> None:
    finish_a_demo(out)
    remove_bundle(out)
    out.bundle.mkdir()
    assert not has_bundle_of(out, RECORD)
