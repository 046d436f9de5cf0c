"""Whether the link to a server is encrypted, and with which keys: the rules, and opening the key files."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_contract.errors import UsageError
from sf_contract.link_keys import LinkPublicKey, LinkSecretKey, public_key_from, read_link_key

DEFAULT_KEY_FILE: Final = "~/.config/splitfrozen/device.key"
"""Written in `sf_edge.main` too, whose --help must not load this module."""

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})\Z")
_IPC = re.compile(r"ipc://.+\Z")
_GIVE_SERVER_KEY: Final = (
    "give --server-key the key that sf-server train printed, or --insecure to send in the clear over a trusted network"
)


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """This device's key, and the key that the server must prove to have."""

    secret: LinkSecretKey
    server: LinkPublicKey


@dataclass(frozen=True, slots=True)
class LinkChoice:
    """What was asked for: the server's address, files or digits of keys as they were given, and `--insecure`."""

    address: str
    key: str | None
    server_key: str | None
    insecure: bool


def check_address(address: str) -> None:
    """Refuse an address that is not ZeroMQ's.

    Raises:
        UsageError: saying what an address looks like.
    """
    if _IPC.match(address):
        return
    match = _TCP.match(address)
    if match is None or not 1 <= int(match["port"]) <= 65_535:
        raise UsageError(
            f"--server {address!r} is not an address",
            cure="write tcp://HOST:PORT, as in tcp://192.168.1.20:5555, or ipc://PATH on one machine",
        )


def check_link(choice: LinkChoice) -> None:
    """Refuse an address or a combination that cannot be used, before anything is opened.

    Raises:
        UsageError: saying which, and what to give instead.
    """
    check_address(choice.address)
    if choice.insecure and (choice.key is not None or choice.server_key is not None):
        raise UsageError(
            "--insecure sends in the clear, but --key and --server-key are for an encrypted link",
            cure="leave one of the two out",
        )
    if choice.key is not None and choice.server_key is None:
        raise UsageError("--key is given, but not the server's key, and both are needed", cure=_GIVE_SERVER_KEY)
    if choice.server_key is None and not choice.insecure and not is_this_machine(choice.address):
        raise UsageError(
            f"the link to {choice.address} crosses a network and must be encrypted, and --server-key is not given",
            cure=_GIVE_SERVER_KEY,
        )


def open_link_keys(choice: LinkChoice) -> LinkKeys | None:
    """The keys for a link that `check_link` let pass; None when it goes in the clear.

    Raises:
        UsageError: a key file is missing, open to others, or none.
    """
    if choice.server_key is None:
        return None
    return LinkKeys(secret=read_link_key(device_key_path(choice)), server=public_key_from(choice.server_key))


def device_key_path(choice: LinkChoice) -> Path:
    """Where this device's secret key is.

    Raises:
        UsageError: none was given, and the default one is missing.
    """
    path = Path(choice.key or DEFAULT_KEY_FILE).expanduser()
    if choice.key is None and not path.exists():
        raise UsageError(
            f"this device has no key yet: there is no {path}",
            cure="make one with sf-edge keygen and take its .pub file to the server, or give --key",
        )
    return path


def host_and_port(address: str) -> tuple[str, int] | None:
    """Where a checked `tcp://` address leads; None for `ipc://`."""
    match = _TCP.match(address)
    return None if match is None else (match["host"].strip("[]"), int(match["port"]))


def is_this_machine(address: str) -> bool:
    """True when what is sent to a checked address never leaves this machine."""
    match = _TCP.match(address)
    return match is None or _is_loopback(match["host"].strip("[]"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
