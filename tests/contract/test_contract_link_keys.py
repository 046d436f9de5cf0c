"""Keys of the link and their files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sf_contract import key_files
from sf_contract.errors import UsageError
from sf_contract.limits import MAX_KEY_FILE_BYTES
from sf_contract.link_keys import (
    LinkSecretKey,
    make_link_key,
    new_link_key,
    public_key_from,
    read_link_key,
    read_link_public_keys,
)

KEY = LinkSecretKey(bytes(range(32)))


def private_file(path: Path, text: str, *, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_made_key_is_read_back_and_its_public_key_belongs_to_it(tmp_path: Path) -> None:
    made = make_link_key(tmp_path / "folder" / "device.key")
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700
    assert read_link_key(made.path).public == made.public
    assert read_link_public_keys(made.public_path) == [made.public]
    assert made.public_path == tmp_path / "folder" / "device.key.pub"


def test_the_public_key_is_the_one_of_curve25519() -> None:
    """The key pair of RFC 7748, section 6.1."""
    alice = LinkSecretKey(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    assert alice.public.hex == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"


def test_every_new_key_is_another_one_and_is_never_shown() -> None:
    first, second = new_link_key(), new_link_key()
    assert first != second
    assert first.raw.hex() not in repr(first)
    assert first.public.key_id in repr(first)


def test_a_public_key_is_given_as_digits_or_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "server.key.pub").write_text("# of the lab\n" + KEY.public.line())
    assert public_key_from(KEY.public.hex) == KEY.public
    assert public_key_from(KEY.public.hex.upper()) == KEY.public
    assert public_key_from(str(tmp_path / "server.key.pub")) == KEY.public


@pytest.mark.parametrize("text", ["", "# nothing\n", KEY.public.line() + new_link_key().public.line()])
def test_a_servers_file_must_hold_exactly_one_key(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.pub").write_text(text)
    with pytest.raises(UsageError, match="public keys, one is needed"):
        public_key_from(str(tmp_path / "server.pub"))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o602, 0o610])
def test_a_secret_key_that_others_may_use_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = private_file(tmp_path / "device.key", KEY.line(), mode=mode)
    with pytest.raises(UsageError, match=rf"link key .*\(mode {mode:04o}") as refused:
        read_link_key(path)
    assert refused.value.cure == f"chmod 600 {path}"


def test_a_secret_key_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = private_file(tmp_path / "device.key", KEY.line())
    monkeypatch.setattr(key_files.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        read_link_key(path)


def test_what_is_no_plain_file_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "device.key", 0o600)
    with pytest.raises(UsageError, match="not a plain file"):
        read_link_key(tmp_path / "device.key")
    with pytest.raises(UsageError, match="not a plain file"):
        read_link_key(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (KEY.public.line(), "holds a splitfrozen-link-public-key"),
        (f"splitfrozen-bundle-signing-key {'0' * 64}\n", "something else than a splitfrozen-link-secret-key"),
        (f"splitfrozen-link-secret-key {'0' * 63}\n", "something else"),
        (f"splitfrozen-link-secret-key {'g' * 64}\n", "something else"),
        ("", "something else"),
        ("x" * (MAX_KEY_FILE_BYTES + 1), "is not a key file"),
        ("clé", "is not a key file"),
    ],
)
def test_what_is_no_secret_key_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        read_link_key(private_file(tmp_path / "device.key", text))
    assert KEY.raw.hex() not in str(refused.value)


def test_a_secret_key_in_place_of_a_public_one_is_named_and_not_shown(tmp_path: Path) -> None:
    path = private_file(tmp_path / "pi.pub", KEY.line())
    with pytest.raises(UsageError, match="holds a splitfrozen-link-secret-key") as refused:
        read_link_public_keys(path)
    assert KEY.raw.hex() not in str(refused.value)


@pytest.mark.parametrize("taken", ["device.key", "device.key.pub"])
def test_a_key_is_never_overwritten_and_no_half_pair_is_left(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("precious")
    with pytest.raises(UsageError, match="never overwritten"):
        make_link_key(tmp_path / "device.key")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {taken: "precious"}
