"""Whether devices are received encrypted, with which key, and who is authorized: the rules, and making what is missing."""

from __future__ import annotations

import ipaddress
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_contract.errors import UsageError
from sf_contract.link_keys import LinkSecretKey, make_link_key, read_link_key

KEY_FILE: Final = "server.key"
AUTHORIZED_FOLDER: Final = "authorized"
DEFAULT_PORT: Final = 5555


@dataclass(frozen=True, slots=True)
class LinkChoice:
    """What was asked for: an address to bind, files as they were given, and `--insecure`."""

    run: Path
    bind: str
    key: str | None
    authorized: str | None
    insecure: bool

    @property
    def is_encrypted(self) -> bool:
        """Off loopback unless `--insecure`, and wherever a key or a folder of keys is given."""
        return self.key is not None or self.authorized is not None or not (self.insecure or self.is_local)

    @property
    def is_local(self) -> bool:
        """Only this machine can reach the address."""
        transport, _, rest = self.bind.partition("://")
        return transport == "ipc" or _is_loopback(rest.rpartition(":")[0])

    @property
    def key_path(self) -> Path:
        """The server's secret key."""
        return self.run / KEY_FILE if self.key is None else Path(self.key)

    @property
    def authorized_path(self) -> Path:
        """The folder with the devices' public keys."""
        return self.run / AUTHORIZED_FOLDER if self.authorized is None else Path(self.authorized)


def check_bind(bind: str) -> None:
    """Refuse addresses that are none.

    Raises:
        UsageError: see above.
    """
    transport, separator, rest = bind.partition("://")
    if not separator or not rest or transport not in {"tcp", "ipc"}:
        raise UsageError(f"{bind!r} is not an address to bind", cure=f"give one like tcp://127.0.0.1:{DEFAULT_PORT}")
    if transport == "tcp" and not rest.rpartition(":")[0]:
        raise UsageError(f"{bind!r} has no port", cure=f"give one like tcp://127.0.0.1:{DEFAULT_PORT}")


def check_link(choice: LinkChoice) -> None:
    """Refuse an address or a combination that cannot be used.

    Raises:
        UsageError: see above.
    """
    check_bind(choice.bind)
    if choice.insecure and choice.is_encrypted:
        raise UsageError(
            "--insecure receives in the clear, but --key and --authorized are for encrypted reception",
            cure="leave one of the two out",
        )


def prepare_link(choice: LinkChoice) -> None:
    """Make the run's own key and folder of authorized keys if they are missing, and check what is there.

    Raises:
        UsageError: a key file or folder cannot be used, or others may change it.
    """
    if not choice.is_encrypted:
        return
    if choice.key is None and not choice.key_path.exists():
        make_link_key(choice.key_path)
    read_server_key(choice)
    try:
        choice.authorized_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(choice.authorized_path.stat().st_mode)
    except OSError as problem:
        raise UsageError(
            f"folder {choice.authorized_path} cannot be used: {problem.strerror}", cure="give another --authorized"
        ) from problem
    if mode & 0o022:
        raise UsageError(
            f"others may add keys to {choice.authorized_path} (mode {mode:04o})",
            cure=f"chmod go-w {choice.authorized_path}",
        )


def read_server_key(choice: LinkChoice) -> LinkSecretKey:
    """The server's secret key.

    Raises:
        UsageError: it is missing, open to others, or none.
    """
    if choice.key is not None and not choice.key_path.exists():
        raise UsageError(
            f"there is no key {choice.key_path}", cure=f"make it with sf-server keygen --out {choice.key_path}"
        )
    return read_link_key(choice.key_path)


def device_options(address: str, key: LinkSecretKey, *, host: str) -> str:
    """The part of the device's command line that finds and recognises this server.

    Args:
        address: what was bound.
        host: this machine's name, for an address that stands for all of its addresses.
    """
    for everywhere in ("tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:"):
        if address.startswith(everywhere):
            address = f"tcp://{host}:{address.removeprefix(everywhere)}"
    return f"--server {address} --server-key {key.public.hex}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
