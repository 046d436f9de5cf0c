"""Settings of `sf-edge run`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sf_contract.errors import UsageError
from sf_contract.messages import Role
from sf_contract.settings import resolve_settings
from sf_edge.link.security import LinkChoice, check_address, check_link
from sf_edge.outbox.place import DATABASE_FILE, outbox_folder
from sf_edge.settings import RunSettings, check_settings, device_from_hostname, valid_device_name

NEEDED = {"bundle": "b", "server": "tcp://127.0.0.1:5555", "data": "d.jsonl"}
DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def settle(**flags: object) -> RunSettings:
    return resolve_settings(RunSettings, toml_path=None, flags={**NEEDED, **flags})


def test_bundle_server_and_data_are_enough() -> None:
    settings = settle()
    assert settings.role is Role.TRAIN
    assert DEVICE_NAME.fullmatch(settings.device)


@pytest.mark.parametrize("missing", sorted(NEEDED))
def test_a_missing_setting_is_named(missing: str) -> None:
    flags = {key: value for key, value in NEEDED.items() if key != missing}
    with pytest.raises(UsageError, match=missing):
        resolve_settings(RunSettings, toml_path=None, flags=flags)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("holdout", 0.95), ("holdout", -0.1), ("holdout", float("nan")), ("threads", 0), ("max_outbox_bytes", 0),
        ("device", "has space"), ("device", ""), ("role", "test"), ("give_up_after_s", -1.0), ("max_tokens", 0),
        ("give_up_after_s", float("nan")), ("data", ""),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UsageError, match="--" + key.replace("_", "-")):
        settle(**{key: value})


@pytest.mark.parametrize("name", ["pi-4", "Küche am Fenster", "..hidden", "", "日本", "a" * 200, "-dash", "host.local"])
def test_every_host_name_has_a_valid_device_name(name: str) -> None:
    assert DEVICE_NAME.fullmatch(valid_device_name(name))


def test_this_machine_has_a_device_name() -> None:
    assert DEVICE_NAME.fullmatch(device_from_hostname())


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:5555", "tcp://localhost:1", "tcp://[::1]:65535", "tcp://127.1.2.3:80", "ipc:///tmp/socket"],
)
def test_addresses_of_this_machine_are_fine(address: str) -> None:
    check_address(address)
    check_link(LinkChoice(address=address, key=None, server_key=None, insecure=False))


@pytest.mark.parametrize(
    "address",
    ["", "localhost:5555", "http://localhost:5555", "tcp://localhost", "tcp://localhost:0", "tcp://localhost:65536",
     "tcp://:5555", "tcp://*:5555", "ipc://", "tcp://a b:5", "tcp://host:5555/path", "tcp://host:5555\n"],
)  # fmt: skip
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        check_address(address)


@pytest.mark.parametrize("address", ["tcp://192.168.1.2:5555", "tcp://server.example:5555", "tcp://[fe80::1]:5555"])
def test_a_network_link_needs_the_servers_key_or_consent(address: str) -> None:
    choice = LinkChoice(address=address, key=None, server_key=None, insecure=False)
    with pytest.raises(UsageError, match="must be encrypted") as caught:
        check_link(choice)
    assert "--server-key" in caught.value.cure
    assert "--insecure" in caught.value.cure
    check_link(LinkChoice(address=address, key=None, server_key="0" * 64, insecure=False))
    check_link(LinkChoice(address=address, key=None, server_key=None, insecure=True))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"insecure": True, "server_key": "0" * 64}, "--insecure"),
        ({"insecure": True, "key": "device.key"}, "--insecure"),
        ({"key": "device.key"}, "both are needed"),
    ],
)
def test_contradictory_options_of_the_link_are_refused_on_loopback_too(given: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_settings(settle(**given))


def test_holdout_makes_no_sense_when_every_row_is_for_validation() -> None:
    with pytest.raises(UsageError, match="--role validation"):
        check_settings(settle(role="validation", holdout=0.1))


def test_a_devices_outboxes_are_in_one_folder_with_one_folder_per_bundle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    bundle_id = "abcdef0123456789" + "0" * 48
    root = settle(device="pi").outbox_root()
    assert outbox_folder(root, bundle_id) == Path("/home/someone/.local/state/splitfrozen/pi/abcdef0123456789")
    assert settle(outbox="~/mine").outbox_root() == Path("/home/someone/mine")
    (tmp_path / DATABASE_FILE).touch()
    assert outbox_folder(tmp_path, bundle_id) == tmp_path, "the outbox itself may be named too"
