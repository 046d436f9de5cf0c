"""Settings of `sf-edge run`, and what follows from them before anything is opened."""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sf_contract.errors import UsageError
from sf_contract.limits import MIB
from sf_contract.messages import DeviceName, Role

GivenText = Annotated[str, Meta(min_length=1)]

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})\Z")
_IPC = re.compile(r"ipc://.+\Z")
_LONGEST_DEVICE_NAME: Final = 64


def device_from_hostname() -> str:
    """This machine's name in the form a device name must have."""
    return valid_device_name(socket.gethostname())


def valid_device_name(name: str) -> str:
    """The nearest valid device name: other characters become dashes, `device` where nothing is left."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")
    return plain[:_LONGEST_DEVICE_NAME] or "device"


class RunSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of `sf-edge run`.

    `holdout` is the fraction of texts sent for validation; `outbox` None means the default folder; `max_tokens` None means
    the bundle's; `give_up_after_s` 0 means never; `trust` is the file or folder with the public keys whose bundles are
    accepted, None accepts unsigned bundles too.
    """

    bundle: GivenText
    server: GivenText
    data: GivenText
    device: DeviceName = msgspec.field(default_factory=device_from_hostname)
    role: Role = Role.TRAIN
    holdout: Annotated[float, Meta(ge=0, le=0.9)] = 0.0
    outbox: GivenText | None = None
    watch: bool = False
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    max_outbox_bytes: Annotated[int, Meta(ge=1)] = 256 * MIB
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    give_up_after_s: Annotated[float, Meta(ge=0, le=1e9)] = 60.0
    trust: GivenText | None = None
    insecure: bool = False
    json: bool = False

    def outbox_folder(self, bundle_id: str) -> Path:
        """The outbox's folder: the one asked for, or one per device and bundle in the user's state folder."""
        if self.outbox is not None:
            return Path(self.outbox).expanduser()
        return Path.home() / ".local" / "state" / "splitfrozen" / self.device / bundle_id[:16]


def check_settings(settings: RunSettings) -> None:
    """Refuse settings that are each fine but cannot be used together, or an address that cannot be used.

    Raises:
        UsageError: saying which, and what to give instead.
    """
    check_address(settings.server, insecure=settings.insecure)
    if settings.role is Role.VALIDATION and settings.holdout > 0:
        raise UsageError(
            "--holdout splits a training file, but --role validation sends every row for validation",
            cure="leave one of the two out",
        )


def check_address(address: str, *, insecure: bool) -> None:
    """Refuse an address that is not ZeroMQ's, or that would send activations in the clear over a network.

    Raises:
        UsageError: saying what an address looks like, or what `--insecure` means.
    """
    if _IPC.match(address):
        return
    match = _TCP.match(address)
    if match is None or not 1 <= int(match["port"]) <= 65_535:
        raise UsageError(
            f"--server {address!r} is not an address",
            cure="write tcp://HOST:PORT, as in tcp://192.168.1.20:5555, or ipc://PATH on one machine",
        )
    if not insecure and not _is_loopback(match["host"].strip("[]")):
        raise UsageError(
            f"the link to {address} is not encrypted: anybody on the network between could read or change the activations",
            cure="use a tunnel that ends on this machine (SSH, WireGuard) and its loopback address, "
            "or give --insecure to send in the clear over a network you trust",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
