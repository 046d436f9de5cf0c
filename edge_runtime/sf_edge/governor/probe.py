"""The machine's state from `/sys` and `/proc`. Whatever is missing, unreadable or nonsense is None; nothing is raised."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from sf_edge.governor.decisions import Reading
from sf_edge.governor.kernel_files import line_or_none, number_or_none

COLDEST_C: Final = -40.0
HOTTEST_C: Final = 150.0
"""Sensors report -274 or 200 degrees when they have nothing to report; silicon works between these."""
FULLEST: Final = 1.2
"""A new battery holds a little more than its design says; more than this is nonsense."""

_BATTERIES: Final = frozenset({"Battery", "UPS"})
_CHARGERS: Final = frozenset({"Mains", "USB", "Wireless"})
_FED: Final = frozenset({"Charging", "Full", "Not charging"})
_SOME_AVG10: Final = re.compile(r"^some avg10=([0-9]{1,3}\.[0-9]+)\b", re.MULTILINE)
_MEMORY: Final = re.compile(r"^(MemTotal|MemAvailable): +([0-9]{1,15}) kB$", re.MULTILINE)


class Probe(Protocol):
    """Reads the machine's state."""

    def read(self) -> Reading:
        """The state now."""


class SystemProbe:
    """The state of the Linux (or Android) machine whose file system is at `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self) -> Reading:
        """The state now; takes a millisecond or so."""
        supplies = [_supply(folder) for folder in _entries(self._root / "sys/class/power_supply")]
        batteries = [supply for supply in supplies if supply.kind in _BATTERIES]
        return Reading(
            battery_percent=_charge_percent(batteries),
            on_battery=_on_battery(batteries, supplies),
            temperature_c=self._temperature_c(),
            memory_pressure_percent=self._pressure_percent("memory"),
            memory_available_percent=self._memory_available_percent(),
            cpu_pressure_percent=self._pressure_percent("cpu"),
        )

    def _temperature_c(self) -> float | None:
        """The hottest thermal zone; where there is none, the hottest sensor."""
        classes = self._root / "sys/class"
        zones = (entry for entry in _entries(classes / "thermal") if entry.name.startswith("thermal_zone"))
        hottest_c = _hottest_c(zone / "temp" for zone in zones)
        if hottest_c is not None:
            return hottest_c
        chips = _entries(classes / "hwmon")
        return _hottest_c(file for chip in chips for file in _entries(chip) if _is_sensor(file.name))

    def _pressure_percent(self, of_what: str) -> float | None:
        found = _SOME_AVG10.search(line_or_none(self._root / "proc/pressure" / of_what) or "")
        percent = None if found is None else float(found[1])
        return percent if percent is not None and percent <= 100 else None

    def _memory_available_percent(self) -> float | None:
        found = {name: int(kib) for name, kib in _MEMORY.findall(line_or_none(self._root / "proc/meminfo") or "")}
        total, available = found.get("MemTotal", 0), found.get("MemAvailable")
        return None if available is None or not 0 <= available <= total or not total else 100 * available / total


@dataclass(frozen=True, slots=True)
class _Supply:
    """One power supply: charge in per cent, `size` how much it holds when full with its unit, `online` of a charger."""

    kind: str
    status: str
    percent: float | None
    size: tuple[str, int] | None
    online: bool | None


def _supply(folder: Path) -> _Supply:
    kind = line_or_none(folder / "type") or ""
    # A mouse or a pen has a battery of its own, which feeds nothing here; and a bay may be empty.
    if line_or_none(folder / "scope") == "Device" or number_or_none(folder / "present") == 0:
        kind = ""
    online = number_or_none(folder / "online")
    return _Supply(
        kind="USB" if kind.startswith("USB") else kind,
        status=line_or_none(folder / "status") or "",
        percent=_percent(folder),
        size=_size(folder),
        online=None if online is None else online > 0,
    )


def _percent(folder: Path) -> float | None:
    percent = number_or_none(folder / "capacity")
    if percent is not None and 0 <= percent <= 100:
        return percent
    for unit in ("energy", "charge"):
        now, full = number_or_none(folder / f"{unit}_now"), _full(folder, unit)
        if now is not None and full is not None and 0 <= now <= FULLEST * full:
            return min(100.0, 100 * now / full)
    return None


def _size(folder: Path) -> tuple[str, int] | None:
    sizes = ((unit, _full(folder, unit)) for unit in ("energy", "charge"))
    return next(((unit, full) for unit, full in sizes if full is not None), None)


def _full(folder: Path, unit: str) -> int | None:
    found = number_or_none(folder / f"{unit}_full") or number_or_none(folder / f"{unit}_full_design")
    return found if found is not None and found > 0 else None


def _charge_percent(batteries: Iterable[_Supply]) -> float | None:
    """All batteries together, larger ones counting more where their sizes can be compared."""
    known = [(battery.percent, battery.size) for battery in batteries if battery.percent is not None]
    if not known:
        return None
    units = {size[0] if size else None for _, size in known}
    weights = [size[1] if size and len(units) == 1 else 1 for _, size in known]
    return sum(percent * weight for (percent, _), weight in zip(known, weights, strict=True)) / sum(weights)


def _on_battery(batteries: list[_Supply], supplies: Iterable[_Supply]) -> bool | None:
    """A battery that is being emptied says so, whatever is plugged in; one that says nothing is judged by the chargers."""
    statuses = {battery.status for battery in batteries}
    if not batteries or "Discharging" in statuses:
        return bool(batteries) or None
    if statuses & _FED:
        return False
    chargers = [supply.online for supply in supplies if supply.kind in _CHARGERS and supply.online is not None]
    return not any(chargers) if chargers else None


def _hottest_c(files: Iterable[Path]) -> float | None:
    found = (number / 1000 for file in files if (number := number_or_none(file)) is not None)
    return max((degrees for degrees in found if COLDEST_C < degrees < HOTTEST_C), default=None)


def _is_sensor(name: str) -> bool:
    return name.startswith("temp") and name.endswith("_input")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
