"""The folder of authorized keys, and the rules of encrypted reception."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sf_contract.errors import UsageError
from sf_contract.link_keys import make_link_key, new_link_key
from sf_server.link.authorized import LOOK_EVERY_S, AuthorizedKeys
from sf_server.link.security import LinkChoice, check_bind, check_link, device_options, prepare_link, read_server_key

LOCAL = ["tcp://127.0.0.1:5555", "tcp://127.1.2.3:*", "tcp://localhost:1", "tcp://[::1]:5555", "ipc:///tmp/x"]
REMOTE = ["tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://192.168.1.5:5555", "tcp://[::]:1", "tcp://127.evil.org:1"]


class Folder:
    """A folder of keys, its reader, and a clock that only goes when asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir()
        self.lines: list[str] = []
        self.now_s = 0.0
        self.keys = AuthorizedKeys(path, say=self.lines.append)

    def look(self) -> bool:
        self.now_s += LOOK_EVERY_S
        return self.keys.refresh(now_s=self.now_s)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "authorized")


def test_a_key_may_use_the_names_of_its_files_and_no_others(folder) -> None:
    one, two = new_link_key().public, new_link_key().public
    for name, key in (("pi", one), ("kitchen.v2", one), ("phone", two)):
        (folder.path / f"{name}.pub").write_text(key.line())
    assert folder.look()
    assert folder.keys.names(one) == {"pi", "kitchen.v2"}
    assert folder.keys.names(two) == {"phone"}
    assert folder.keys.names(new_link_key().public) == frozenset()
    assert folder.keys.names(None) == frozenset()
    assert folder.keys.devices == 3


def test_files_are_added_changed_and_removed_while_it_is_used(folder) -> None:
    one, two = new_link_key().public, new_link_key().public
    path = folder.path / "pi.pub"
    folder.look()
    assert not folder.look()
    path.write_text(one.line())
    assert folder.look()
    assert folder.keys.names(one) == {"pi"}
    path.write_text(two.line())
    os.utime(path, ns=(1, 1))
    assert folder.look()
    assert (folder.keys.names(one), folder.keys.names(two)) == (frozenset(), {"pi"})
    path.unlink()
    assert folder.look()
    assert folder.keys.names(two) == frozenset()


def test_the_folder_is_looked_at_once_a_second_and_not_more_often(folder) -> None:
    folder.look()
    (folder.path / "pi.pub").write_text(new_link_key().public.line())
    assert not folder.keys.refresh(now_s=folder.now_s + 0.9 * LOOK_EVERY_S)
    assert folder.keys.refresh(now_s=folder.now_s + LOOK_EVERY_S)


def test_a_device_may_have_an_old_and_a_new_key_for_a_while(folder) -> None:
    old, new = new_link_key().public, new_link_key().public
    (folder.path / "pi.pub").write_text(old.line() + new.line())
    folder.look()
    assert folder.keys.names(old) == folder.keys.names(new) == {"pi"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pi.pub", "hello\n", "something else than a splitfrozen-link-public-key"),
        ("pi.pub", new_link_key().line(), "holds a splitfrozen-link-secret-key"),
        ("has space.pub", new_link_key().public.line(), "cannot be a device's name"),
        (".pub", new_link_key().public.line(), "cannot be a device's name"),
    ],
    ids=["no-key", "secret-key", "a-name-with-a-space", "no-name"],
)
def test_a_file_that_cannot_be_used_is_named_once_and_authorizes_nobody(folder, name, content, says) -> None:
    good = new_link_key().public
    (folder.path / name).write_text(content)
    (folder.path / "good.pub").write_text(good.line())
    for _ in range(3):
        folder.look()
    (line,) = folder.lines
    assert says in line
    assert name in line
    assert folder.keys.names(good) == {"good"}
    assert folder.keys.devices == 1


def test_other_files_are_left_alone_and_a_folder_that_is_gone_authorizes_nobody(folder) -> None:
    key = new_link_key().public
    (folder.path / "pi.pub").write_text(key.line())
    (folder.path / "README").write_text("keys of the lab")
    (folder.path / "dir.pub").mkdir()
    folder.look()
    assert folder.keys.names(key) == {"pi"}
    folder.path.rename(folder.path.with_name("elsewhere"))
    assert folder.look()
    assert folder.keys.names(key) == frozenset()


def choice(bind: str, run: Path = Path("/run-of-nobody"), **given: object) -> LinkChoice:
    return LinkChoice(**{"run": run, "bind": bind, "key": None, "authorized": None, "insecure": False, **given})


@pytest.mark.parametrize("bind", LOCAL)
def test_addresses_of_this_machine_are_in_the_clear_unless_keys_are_given(bind: str) -> None:
    for given, encrypted in (
        ({}, False),
        ({"key": "k"}, True),
        ({"authorized": "a"}, True),
        ({"insecure": True}, False),
    ):
        check_link(choice(bind, **given))
        assert choice(bind, **given).is_encrypted is encrypted


@pytest.mark.parametrize("bind", REMOTE)
def test_addresses_that_others_reach_are_encrypted_unless_that_is_refused(bind: str) -> None:
    check_link(choice(bind))
    assert choice(bind).is_encrypted
    assert not choice(bind, insecure=True).is_encrypted


@pytest.mark.parametrize("given", [{"key": "k"}, {"authorized": "a"}])
@pytest.mark.parametrize("bind", [LOCAL[0], REMOTE[0]])
def test_insecure_and_keys_together_are_refused(bind: str, given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--insecure"):
        check_link(choice(bind, insecure=True, **given))


@pytest.mark.parametrize("bind", ["", "5555", "localhost:5555", "udp://127.0.0.1:1", "tcp://", "tcp://127.0.0.1"])
def test_what_is_no_address_is_a_usage_error(bind: str) -> None:
    with pytest.raises(UsageError, match=r"address|port"):
        check_bind(bind)


def test_the_runs_own_key_and_folder_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    wanted = choice("tcp://*:5555", tmp_path)
    prepare_link(wanted)
    first = read_server_key(wanted)
    prepare_link(wanted)
    assert read_server_key(wanted).public == first.public
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "authorized").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "server.key.pub").read_text() == first.public.line()


def test_in_the_clear_nothing_is_made(tmp_path: Path) -> None:
    prepare_link(choice("tcp://127.0.0.1:5555", tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no key") as refused:
        prepare_link(choice("tcp://*:1", tmp_path, key=str(tmp_path / "mine.key")))
    assert "sf-server keygen --out" in refused.value.cure
    make_link_key(tmp_path / "mine.key")
    prepare_link(choice("tcp://*:1", tmp_path, key=str(tmp_path / "mine.key")))
    assert not (tmp_path / "server.key").exists()


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "authorized").mkdir()
    (tmp_path / "authorized").chmod(0o770)
    with pytest.raises(UsageError, match="others may add keys") as refused:
        prepare_link(choice("tcp://*:1", tmp_path))
    assert refused.value.cure == f"chmod go-w {tmp_path / 'authorized'}"


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ("tcp://0.0.0.0:5555", "tcp://lab:5555"),
        ("tcp://[::]:5555", "tcp://lab:5555"),
        ("tcp://192.168.1.5:5555", "tcp://192.168.1.5:5555"),
    ],
)
def test_the_printed_options_name_an_address_that_devices_can_use(bound: str, told: str) -> None:
    key = new_link_key()
    assert device_options(bound, key, host="lab") == f"--server {told} --server-key {key.public.hex}"
