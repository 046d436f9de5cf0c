"""Settings of `sf-edge run` and `sf-edge doctor`, and what follows from them before anything is opened."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sf_contract.errors import UsageError
from sf_contract.limits import MIB
from sf_contract.messages import DeviceName, Role
from sf_contract.records import RecordFormat
from sf_edge.link.security import LinkChoice, check_link
from sf_edge.sources.opening import DataChoice

GivenText = Annotated[str, Meta(min_length=1)]

_LONGEST_DEVICE_NAME: Final = 64
_SHARE = re.compile(r"(?P<number>[0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(?P<percent>%)?\Z")

LEAST_CPU_SHARE: Final = 0.01
MOST_CPU_SHARE: Final = 16.0


def device_from_hostname() -> str:
    """This machine's name in the form a device name must have."""
    return valid_device_name(socket.gethostname())


def valid_device_name(name: str) -> str:
    """The nearest valid device name: other characters become dashes, `device` where nothing is left."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")
    return plain[:_LONGEST_DEVICE_NAME] or "device"


class DeviceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `sf-edge run` and `sf-edge doctor` are told, none of it required.

    `holdout` is the fraction of texts sent for validation; `format` None means by the file's ending, for standard
    input JSON Lines; `label` is the label of rows without one; `outbox` None means the default folder; `max_tokens`
    None means the bundle's; `threads` None means what `sf-edge bench --tune` found, else 1; `give_up_after_s` 0 means
    never; `trust` is the file or folder with the public keys whose bundles are accepted, None accepts unsigned
    bundles too; `key` is this device's secret key file, None means the default one; `server_key` is the server's
    public key or its file, None means a link in the clear.

    What the governor keeps to: percentages of 100, degrees Celsius; None means the usual limit (`sf_edge.governor.pace`), for
    `max_cpu_pressure` and `max_cpu` none. `max_cpu` is a share of one core, 0.25 or "25%". `nice` 0 leaves the priority alone.
    """

    bundle: GivenText | None = None
    server: GivenText | None = None
    data: GivenText | None = None
    device: DeviceName = msgspec.field(default_factory=device_from_hostname)
    role: Role = Role.TRAIN
    holdout: Annotated[float, Meta(ge=0, le=0.9)] = 0.0
    outbox: GivenText | None = None
    watch: bool = False
    format: RecordFormat | None = None
    label: GivenText | None = None
    threads: Annotated[int, Meta(ge=1, le=256)] | None = None
    max_outbox_bytes: Annotated[int, Meta(ge=1)] = 256 * MIB
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    give_up_after_s: Annotated[float, Meta(ge=0, le=1e9)] = 60.0
    trust: GivenText | None = None
    key: GivenText | None = None
    server_key: GivenText | None = None
    insecure: bool = False
    min_battery: Annotated[float, Meta(ge=0, le=100)] | None = None
    only_charging: bool = False
    max_temperature: Annotated[float, Meta(ge=20, le=120)] | None = None
    max_memory_pressure: Annotated[float, Meta(gt=0, le=100)] | None = None
    max_cpu_pressure: Annotated[float, Meta(gt=0, le=100)] | None = None
    max_cpu: float | str | None = None
    nice: Annotated[int, Meta(ge=0, le=19)] = 10
    cpus: GivenText | None = None
    no_governor: bool = False
    json: bool = False

    def outbox_root(self) -> Path:
        """Where this device's outboxes are, one folder per bundle: as asked for, or in the user's state folder."""
        if self.outbox is not None:
            return Path(self.outbox).expanduser()
        return Path.home() / ".local" / "state" / "splitfrozen" / self.device


class DoctorSettings(DeviceSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of `sf-edge doctor`; `timeout_s` is how long the network may take for one answer."""

    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 5.0


class RunSettings(DeviceSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of `sf-edge run`."""

    bundle: GivenText
    server: GivenText
    data: GivenText

    def link_choice(self) -> LinkChoice:
        """What was said about the link to the server."""
        return LinkChoice(address=self.server, key=self.key, server_key=self.server_key, insecure=self.insecure)

    def data_choice(self) -> DataChoice:
        """What was said about where the rows are."""
        return DataChoice(data=self.data, record_format=self.format, watch=self.watch)


def check_settings(settings: RunSettings) -> None:
    """Refuse settings that are each fine but cannot be used together, or an address that cannot be used.

    Raises:
        UsageError: saying which, and what to give instead.
    """
    check_link(settings.link_choice())
    check_combination(settings)


def check_combination(settings: DeviceSettings) -> None:
    """The part of `check_settings` that is not about the link.

    Raises:
        UsageError: as there.
    """
    if settings.role is Role.VALIDATION and settings.holdout > 0:
        raise UsageError(
            "--holdout splits a training file, but --role validation sends every row for validation",
            cure="leave one of the two out",
        )
    if settings.max_cpu is not None:
        cpu_share(settings.max_cpu)
    pausing = ("min_battery", "only_charging", "max_temperature", "max_memory_pressure", "max_cpu_pressure")
    given = [f"--{name.replace('_', '-')}" for name in pausing if getattr(settings, name) not in (None, False)]
    if settings.no_governor and given:
        raise UsageError(f"--no-governor switches off {', '.join(given)}", cure="leave one of the two out")


def cpu_share(given: float | str) -> float:
    """A share of one core from a number, or from text like `25%` or `0.25`.

    Raises:
        UsageError: it is no such share, or more than any device has.
    """
    text = str(given).strip()
    match = _SHARE.match(text)
    share = 0.0 if match is None else float(match["number"]) / (100 if match["percent"] else 1)
    if not LEAST_CPU_SHARE <= share <= MOST_CPU_SHARE:
        raise UsageError(
            f"--max-cpu {text} is no share of a core between {LEAST_CPU_SHARE:.0%} and {MOST_CPU_SHARE:.0%}",
            cure="write 25% or 0.25 for a quarter of one core; 200% is two cores",
        )
    return share
