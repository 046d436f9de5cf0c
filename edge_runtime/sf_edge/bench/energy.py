"""Energy the machine uses, from what its kernel offers: processor counters, a battery that discharges, a power sensor.

All of them measure more than this process: a package, a board or a whole device with everything that runs on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sf_edge.governor.kernel_files import ReadLine, line_or_none, number_or_none, read_line, why_unreadable


@dataclass(frozen=True, slots=True)
class Mark:
    """A meter's values at a moment: microjoules of each counter, or watts of each sensor. None could not be read."""

    at_s: float
    values: tuple[float | None, ...]


class Meter(Protocol):
    """Something that tells the energy used between two moments."""

    @property
    def source(self) -> str:
        """What is measured, for a person."""
        ...

    def mark(self) -> Mark:
        """The values now."""
        ...

    def joules(self, begin: Mark, end: Mark) -> float | None:
        """Energy between two marks; None where a value was missing."""
        ...


@dataclass(frozen=True, slots=True)
class NoMeter:
    """No energy can be read here, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class CounterMeter:
    """Counters of microjoules that start again at zero after `ranges_uj`."""

    source: str
    paths: tuple[Path, ...]
    ranges_uj: tuple[int | None, ...]
    now_s: Callable[[], float]
    read: ReadLine = read_line

    def mark(self) -> Mark:
        """The counters now."""
        return Mark(at_s=self.now_s(), values=tuple(number_or_none(path, self.read) for path in self.paths))

    def joules(self, begin: Mark, end: Mark) -> float | None:
        """Sum of what the counters counted; a counter that ran over once between the marks is understood."""
        used = [
            _counted(before, after, range_uj)
            for before, after, range_uj in zip(begin.values, end.values, self.ranges_uj, strict=True)
        ]
        known = [microjoules for microjoules in used if microjoules is not None]
        return sum(known) / 1e6 if len(known) == len(used) else None


@dataclass(frozen=True, slots=True)
class PowerMeter:
    """A reading of watts; energy is the mean of the readings at both ends, times the time between them."""

    source: str
    watts: Callable[[], float | None]
    now_s: Callable[[], float]

    def mark(self) -> Mark:
        """The power now."""
        return Mark(at_s=self.now_s(), values=(self.watts(),))

    def joules(self, begin: Mark, end: Mark) -> float | None:
        """Trapezoid between the two readings."""
        (before,), (after,) = begin.values, end.values
        if before is None or after is None:
            return None
        return (before + after) / 2 * (end.at_s - begin.at_s)


def find_meter(
    root: Path = Path("/"), *, now_s: Callable[[], float], read: ReadLine = read_line
) -> CounterMeter | PowerMeter | NoMeter:
    """The best meter of this machine: processor counters (RAPL), then a discharging battery, then a power sensor (hwmon)."""
    reasons: list[str] = []
    for find in (_processor_counters, _battery, _power_sensor):
        found = find(root, now_s, read)
        if not isinstance(found, NoMeter):
            return found
        reasons.append(found.reason)
    return NoMeter("; ".join(reasons))


def _counted(before: float | None, after: float | None, range_uj: int | None) -> float | None:
    if before is None or after is None:
        return None
    if after >= before:
        return after - before
    return None if range_uj is None else after + range_uj - before


def _processor_counters(root: Path, now_s: Callable[[], float], read: ReadLine) -> CounterMeter | NoMeter:
    """RAPL: one zone per processor package. Sub-zones are part of it, and `psys` contains it, so both stay out."""
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    packages = [zone for zone in zones if (line_or_none(zone / "name", read) or "").startswith("package")]
    if not packages:
        return NoMeter("no processor energy counter (RAPL)")
    paths = tuple(zone / "energy_uj" for zone in packages)
    if problem := next(filter(None, (why_unreadable(path, read) for path in paths)), None):
        return NoMeter(f"processor energy counter: {problem}")
    ranges = tuple(number_or_none(zone / "max_energy_range_uj", read) for zone in packages)
    return CounterMeter("processor package (RAPL)", paths, ranges, now_s, read)


def _battery(root: Path, now_s: Callable[[], float], read: ReadLine) -> PowerMeter | NoMeter:
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    batteries = [supply for supply in supplies if line_or_none(supply / "type", read) == "Battery"]
    if not batteries:
        return NoMeter("no battery")
    draining = [battery for battery in batteries if line_or_none(battery / "status", read) == "Discharging"]
    if not draining:
        return NoMeter(f"battery {batteries[0].name} is not discharging, so it does not tell what the machine uses")
    battery = draining[0]
    if _battery_watts(battery, read) is None:
        return NoMeter(f"battery {battery.name} tells neither power nor current and voltage to this user")
    return PowerMeter(f"whole device (battery {battery.name})", lambda: _battery_watts(battery, read), now_s)


def _battery_watts(battery: Path, read: ReadLine) -> float | None:
    """`power_now` is in microwatts; else microamperes times microvolts. Some drivers give a negative sign when discharging."""
    power_uw = number_or_none(battery / "power_now", read)
    if power_uw is not None:
        return abs(power_uw) / 1e6
    current_ua = number_or_none(battery / "current_now", read)
    voltage_uv = number_or_none(battery / "voltage_now", read)
    return None if current_ua is None or voltage_uv is None else abs(current_ua) * voltage_uv / 1e12


def _power_sensor(root: Path, now_s: Callable[[], float], read: ReadLine) -> PowerMeter | NoMeter:
    """The highest of the sensors, since a board's input rail holds what its other rails use."""
    sensors = sorted((root / "sys/class/hwmon").glob("hwmon*/power*_input"))
    if not sensors:
        return NoMeter("no power sensor (hwmon)")
    readable = [(power_uw, path) for path in sensors if (power_uw := number_or_none(path, read)) is not None]
    if not readable:
        return NoMeter(f"power sensor: {why_unreadable(sensors[0], read)}")
    sensor = max(readable)[1]
    chip = line_or_none(sensor.parent / "name", read) or sensor.parent.name
    label = line_or_none(sensor.with_name(sensor.name.replace("_input", "_label")), read) or sensor.name
    return PowerMeter(f"sensor {chip} {label} (hwmon)", lambda: _sensor_watts(sensor, read), now_s)


def _sensor_watts(sensor: Path, read: ReadLine) -> float | None:
    power_uw = number_or_none(sensor, read)
    return None if power_uw is None else power_uw / 1e6
