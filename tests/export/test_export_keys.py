"""`sf-export keygen` and `sf-export sign`."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from sf_contract import key_files
from sf_contract.bundle import SIGNATURE_FILE, open_bundle
from sf_contract.command import run_command
from sf_contract.signing import check_signature, read_signing_key, read_trust_list
from sf_export import keys
from sf_export.bundle_writer import write_bundle
from sf_export.keys import keygen_command, sign_bundle, sign_command
from support.tiny_bundle import GRAPH, tiny_files, tiny_manifest, write_tiny_bundle


def keygen(*options: str) -> int:
    return run_command("sf-export", keygen_command, list(options))


def sign(*options: str) -> int:
    return run_command("sf-export", sign_command, list(options))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A private key with its public key beside it."""
    assert keygen("--out", str(tmp_path / "team.key")) == 0
    return tmp_path / "team.key"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_key_belongs_to_its_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key_file = tmp_path / "team.key"
    assert keygen("--out", str(key_file)) == 0
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = read_signing_key(key_file)
    assert read_trust_list(Path(f"{key_file}.pub")).keys == {key.public}
    said = capsys.readouterr()
    assert key.public.key_id in said.out
    assert key_file.read_text().split()[1] not in said.out + said.err


def test_without_a_name_the_key_goes_to_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    old_mask = os.umask(0)
    try:
        assert keygen("--json") == 0
    finally:
        os.umask(old_mask)
    printed = json.loads(capsys.readouterr().out)
    path = tmp_path / ".config" / "splitfrozen" / "bundle.key"
    assert printed["signing_key"] == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sign(str(write_tiny_bundle(tmp_path / "bundle"))) == 0


@pytest.mark.parametrize("taken", ["team.key", "team.key.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, taken: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / taken).write_text("precious")
    assert keygen("--out", str(tmp_path / "team.key")) == 2
    assert f"{taken} exists" in capsys.readouterr().err
    assert (tmp_path / taken).read_text() == "precious"
    assert names(tmp_path) == [taken]


def test_a_link_where_the_key_should_go_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "team.key").symlink_to(tmp_path / "elsewhere")
    assert keygen("--out", str(tmp_path / "team.key")) == 2
    assert names(tmp_path) == ["team.key"]


def test_a_key_that_does_not_fit_on_the_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(key_files.os, "fsync", full)
    assert keygen("--out", str(tmp_path / "team.key")) == 2
    assert "No space left" in capsys.readouterr().err
    assert names(tmp_path) == []


def test_a_place_for_the_key_that_cannot_be_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert keygen("--out", str(tmp_path / "file" / "team.key")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_signing_keeps_the_bundles_id_and_says_who(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = open_bundle(write_tiny_bundle(tmp_path / "bundle"))
    assert sign(str(bundle.folder), "--key", str(key_file)) == 0
    key = read_signing_key(key_file)
    assert f"{bundle.bundle_id} is signed by {key.public.key_id}" in capsys.readouterr().out
    assert open_bundle(bundle.folder).bundle_id == bundle.bundle_id
    signer = check_signature(bundle, read_trust_list(Path(f"{key_file}.pub")))
    assert signer is not None
    assert signer.trusted


def test_signing_twice_gives_the_same_bytes_and_leaves_nothing_beside(tmp_path: Path, key_file: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundles" / "one")
    assert sign(str(folder), "--key", str(key_file)) == 0
    first = (folder / SIGNATURE_FILE).read_bytes()
    assert sign(str(folder), "--key", str(key_file), "--json") == 0
    assert (folder / SIGNATURE_FILE).read_bytes() == first
    assert names(tmp_path / "bundles") == ["one"]


def test_a_bundle_can_be_written_signed(tmp_path: Path, key_file: Path) -> None:
    """The export's way: never a moment without the signature."""
    key = read_signing_key(key_file)
    files = tiny_files()
    manifest = tiny_manifest(files)
    folder = tmp_path / "bundle"
    write_bundle(folder, manifest, files, signature=key.sign(manifest))
    before = (folder / SIGNATURE_FILE).read_bytes()
    assert sign_bundle(folder, key) == manifest.bundle_id
    assert (folder / SIGNATURE_FILE).read_bytes() == before
    write_bundle(folder, manifest, files)
    assert SIGNATURE_FILE not in names(folder), "a new bundle does not inherit a signature"


def test_another_signature_is_replaced_and_named(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    other = tmp_path / "other.key"
    assert keygen("--out", str(other)) == 0
    assert sign(str(folder), "--key", str(other)) == 0
    capsys.readouterr()
    assert sign(str(folder), "--key", str(key_file)) == 0
    assert f"was signed by {read_signing_key(other).public.key_id}" in capsys.readouterr().err
    signer = check_signature(open_bundle(folder), None)
    assert signer is not None
    assert signer.key_id == read_signing_key(key_file).public.key_id


@pytest.mark.parametrize("damage", [GRAPH, SIGNATURE_FILE])
def test_a_damaged_bundle_is_not_signed(
    tmp_path: Path, key_file: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    sign_bundle(folder, read_signing_key(key_file))
    content = (folder / damage).read_bytes()
    (folder / damage).write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    before = (folder / SIGNATURE_FILE).read_bytes()
    assert sign(str(folder), "--key", str(key_file)) == 13
    assert "Cure:" in capsys.readouterr().err
    assert (folder / SIGNATURE_FILE).read_bytes() == before


def test_a_key_that_others_may_read_is_not_used(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle")
    key_file.chmod(0o644)
    assert sign(str(folder), "--key", str(key_file)) == 2
    assert "chmod 600" in capsys.readouterr().err
    assert SIGNATURE_FILE not in names(folder)


def test_a_full_disk_leaves_the_bundle_as_it_was(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    folder = write_tiny_bundle(tmp_path / "bundles" / "one")
    before = names(folder)
    monkeypatch.setattr(keys, "write_file", full)
    assert sign(str(folder), "--key", str(key_file)) == 19
    assert "no room left" in capsys.readouterr().err
    assert (names(folder), names(folder.parent)) == (before, ["one"])


def test_a_bundle_reached_through_a_link_is_signed_where_it_is(tmp_path: Path, key_file: Path) -> None:
    folder = write_tiny_bundle(tmp_path / "bundles" / "version-3")
    (tmp_path / "current").symlink_to(folder)
    assert sign(str(tmp_path / "current"), "--key", str(key_file)) == 0
    assert SIGNATURE_FILE in names(folder)
