"""Checks of the device itself: outbox, disk, governor, this device's key, clock. They leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sf_contract.bundle import MANIFEST_FILE, Bundle
from sf_contract.errors import DiskFull, StoreError
from sf_contract.limits import KIB, MIB
from sf_contract.link_keys import LinkSecretKey, read_link_key
from sf_edge.doctor.findings import Concern, Found
from sf_edge.governor.activity import read_activity
from sf_edge.governor.decisions import Governor, Reading
from sf_edge.governor.pace import blind_spots, limits_of
from sf_edge.link.security import LinkChoice, device_key_path
from sf_edge.outbox.lock import FolderLock
from sf_edge.outbox.place import has_outbox, outbox_folder
from sf_edge.outbox.queue import check_owner, read_outbox_status
from sf_edge.outbox.records import OutboxStatus, Owner
from sf_edge.progress import readable_bytes
from sf_edge.settings import DeviceSettings

LEAST_FREE_BYTES: Final = 8 * MIB
"""An outbox of a few rows, and its log, which SQLite lets grow to 4 MB before it begins anew."""
LEAST_FREE_FILES: Final = 16

FIRST_WRITTEN_S: Final = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
"""Nobody had this program before."""
CLOCKS_AGREE_S: Final = 120.0

_CLOCK_HARM: Final = (
    "samples and encryption do not need the clock, but the times in logs, in sf-edge status and of files are wrong, and "
    "programs that fetch anything over HTTPS may refuse certificates"
)
_CLOCK_CURE: Final = "set the clock, on Linux with timedatectl set-ntp true"


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """What a file system still takes from this user; None: it does not count files."""

    free_bytes: int
    free_files: int | None


def disk_space(folder: Path) -> DiskSpace:
    """The space below a folder (statvfs; a user's quota is not seen).

    Raises:
        OSError: it cannot be told.
    """
    found = os.statvfs(folder)
    return DiskSpace(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def look_at_outbox(settings: DeviceSettings, bundle: Bundle | None) -> Found[OutboxStatus | None]:
    """Whether an outbox can be made or used, what it holds, and whether somebody uses it; None when there is none yet.

    Raises:
        StoreError: its folder cannot be used, or its file.
        MismatchError: it belongs to another bundle or device.
    """
    root = settings.outbox_root()
    folder = root if bundle is None else outbox_folder(root, bundle.bundle_id)
    _check_writable(folder)
    if not has_outbox(folder):
        told = (
            f"none yet, can be made in {folder}" if bundle else f"{root} can hold it; which one it is, the bundle says"
        )
        return Found(None, told, _in_use(settings, folder, root))
    status = read_outbox_status(folder)
    check_owner(folder, found=status.owner, expected=_expected(settings, bundle, status.owner))
    waiting = f"{status.waiting_samples} samples wait ({readable_bytes(status.waiting_bytes)}) in {folder}"
    return Found(status, waiting, (*_in_use(settings, folder, root), *_full(settings, status)))


def look_at_disk(
    settings: DeviceSettings, status: OutboxStatus | None, *, space_of: Callable[[Path], DiskSpace]
) -> Found[None]:
    """Whether the outbox has room to grow.

    Raises:
        DiskFull: there is no room for an outbox at all.
        StoreError: the disk cannot be asked.
    """
    place = nearest_folder(settings.outbox_root())
    try:
        space = space_of(place)
    except OSError as problem:
        raise StoreError(
            f"the disk under {place} cannot be asked: {problem.strerror}", cure="check the disk"
        ) from problem
    free = f"{readable_bytes(space.free_bytes)} free for {settings.outbox_root()}"
    if space.free_bytes < LEAST_FREE_BYTES or (space.free_files is not None and space.free_files < LEAST_FREE_FILES):
        files = "" if space.free_files is None else f" and {space.free_files} files"
        raise DiskFull(
            f"only {readable_bytes(space.free_bytes)}{files} free for the outbox in {settings.outbox_root()}",
            cure=f"free some space, {readable_bytes(LEAST_FREE_BYTES)} at least, or give an --outbox on another disk",
        )
    growth = settings.max_outbox_bytes - (0 if status is None else status.waiting_bytes)
    if space.free_bytes < growth:
        concern = Concern(
            f"the outbox may grow by {readable_bytes(growth)} while the server is away",
            f"free some space, or give --max-outbox-bytes {space.free_bytes // 2 // KIB * KIB}",
        )
        return Found(None, free, (concern,))
    return Found(None, free)


def look_at_governor(settings: DeviceSettings, reading: Reading) -> Found[None]:
    """Whether the governor would pause now, and which options have nothing to go by.

    Raises:
        UsageError: `--max-cpu` is no share.
    """
    governor = Governor(limits_of(settings))
    governor.note(reading, 0.0)
    pause = governor.pause()
    concerns = [
        Concern(text, "leave that option out, or stop sf-edge by other means")
        for text in blind_spots(settings, reading)
    ]
    if pause is not None:
        concerns.insert(0, Concern(f"would pause now: {pause.text()}", "wait for that, or give another limit"))
    return Found(None, f"would compute now; {_readings(reading)}" if pause is None else "", tuple(concerns))


def look_at_key(choice: LinkChoice) -> Found[LinkSecretKey]:
    """This device's secret key, and who else may read it.

    Raises:
        UsageError: it is missing, open to others, or none.
    """
    path = device_key_path(choice)
    key = read_link_key(path)
    return Found(key, f"{path}, key id {key.public.key_id}, only this user may read it")


def look_at_clock(now_s: float, *, bundle: Bundle | None, server_s: float | None) -> Found[None]:
    """Whether the clock can be right: not before this program or the bundle's files, and near the server's if that is known."""
    earliest_s, earliest = max([(FIRST_WRITTEN_S, "this program was written"), *_bundle_time(bundle)])
    concerns = []
    if now_s < earliest_s - CLOCKS_AGREE_S:
        concerns.append(f"before {earliest} ({_time_text(earliest_s)})")
    if server_s is not None and abs(now_s - server_s) > CLOCKS_AGREE_S:
        side = "behind" if now_s < server_s else "ahead of"
        concerns.append(f"{_span_text(abs(now_s - server_s))} {side} the server's ({_time_text(server_s)})")
    if not concerns:
        beside = "not compared with a server's" if server_s is None else "as the server's"
        return Found(None, f"{_time_text(now_s)}, {beside}")
    wrong = f"it is set to {_time_text(now_s)}, {' and '.join(concerns)}: {_CLOCK_HARM}"
    return Found(None, "", (Concern(wrong, _CLOCK_CURE),))


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the nearest above it that exists."""
    return next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path("/"))


def _check_writable(folder: Path) -> None:
    place = nearest_folder(folder.absolute())
    if not place.is_dir():
        raise StoreError(f"{place} is no folder", cure="give --outbox a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StoreError(
            f"{place} cannot be written by this user, so it cannot hold an outbox",
            cure="give --outbox a folder that this user may write",
        )


def _expected(settings: DeviceSettings, bundle: Bundle | None, found: Owner) -> Owner:
    bundle_id = found.bundle_id if bundle is None else bundle.bundle_id
    return replace(found, bundle_id=bundle_id, device=settings.device)


def _in_use(settings: DeviceSettings, folder: Path, root: Path) -> tuple[Concern, ...]:
    places = {folder} if settings.outbox is None else {folder, root}
    if not any(FolderLock.is_held(place) for place in places):
        return ()
    activity = read_activity(folder)
    who = "a running sf-edge" if activity is None else f"a running sf-edge (process {activity.pid}: {activity.text})"
    return (Concern(f"{who} uses it", "nothing, if you want that one; else stop it before you start another"),)


def _full(settings: DeviceSettings, status: OutboxStatus) -> tuple[Concern, ...]:
    if status.waiting_bytes < settings.max_outbox_bytes:
        return ()
    return (Concern("it is full, so reading waits for the server", "see to it that the server is reached"),)


def _readings(reading: Reading) -> str:
    """What can be read, for a person."""
    known = (
        ("battery at {:.0f} %", reading.battery_percent),
        ("{:.0f} °C", reading.temperature_c),
        ("memory pressure {:.0f} %", reading.memory_pressure_percent),
        ("{:.0f} % of the memory available", reading.memory_available_percent),
    )
    told = [text.format(value) for text, value in known if value is not None]
    if reading.on_battery is not None:
        told.append("runs on battery" if reading.on_battery else "on the charger")
    return ", ".join(told) or "no battery, sensor or pressure can be read here"


def _bundle_time(bundle: Bundle | None) -> list[tuple[float, str]]:
    if bundle is None:
        return []
    return [((bundle.folder / MANIFEST_FILE).stat().st_mtime, "the bundle's files came here")]


def _time_text(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} s after 1970"


def _span_text(seconds: float) -> str:
    for unit, length_s in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"
