"""When the device may compute, as pure decisions: a reading and limits go in; run, pause (why, until what) or rest comes out.

A pause begins with the first reading that asks for it: the device belongs to somebody else. It ends with the first reading that
is well on the good side of every limit, not just back at it, and not before `SHORTEST_PAUSE_S`; so no limit can make it flap.
What cannot be read never pauses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

SHORTEST_PAUSE_S: Final = 30.0
BATTERY_MARGIN_PERCENT: Final = 5.0
TEMPERATURE_MARGIN_C: Final = 5.0
PRESSURE_MARGIN: Final = 0.5
"""A pause for pressure ends below this part of the limit."""
LEAST_MEMORY_PERCENT: Final = 5.0
MEMORY_MARGIN_PERCENT: Final = 5.0
"""Where the kernel reports no memory pressure: pauses while less of the memory is available, until this much more is."""

BURST_S: Final = 1.0
"""Unused processor time is kept for the share of one second: a long pause is not followed by a long burst."""
SHORTEST_REST_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of the machine; None is what cannot be read.

    `on_battery` is False while a charger feeds the machine. Pressures are the percentage of the last ten seconds in which some
    task waited for memory or for a processor (PSI `some avg10`); `memory_available_percent` is of all memory.
    """

    battery_percent: float | None = None
    on_battery: bool | None = None
    temperature_c: float | None = None
    memory_pressure_percent: float | None = None
    memory_available_percent: float | None = None
    cpu_pressure_percent: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What pauses, in the units of `Reading`; None never does. `max_cpu` is the share of one core that may be used."""

    min_battery_percent: float | None = None
    only_charging: bool = False
    max_temperature_c: float | None = None
    max_memory_pressure_percent: float | None = None
    max_cpu_pressure_percent: float | None = None
    max_cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A row may be computed."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing may be computed: why, and until what."""

    reason: str
    until: str
    since_s: float

    def text(self) -> str:
        """For people, without the time."""
        return f"{self.reason}, waits for {self.until}"


@dataclass(frozen=True, slots=True)
class Throttle:
    """Rest: enough processor time was used for now."""

    max_cpu: float
    until_s: float
    since_s: float


Decision = Run | Pause | Throttle


@dataclass(frozen=True, slots=True)
class _Cause:
    limit: str
    reason: str
    until: str


class Governor:
    """Decides; every method must get times that never decrease."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._duty = None if limits.max_cpu is None else DutyCycle(limits.max_cpu)
        self._causes: tuple[_Cause, ...] = ()
        self._paused_since_s = 0.0
        self._resting_since_s: float | None = None

    def note(self, reading: Reading, now_s: float) -> None:
        """Take notice of the machine's state."""
        causes = _causes(reading, self._limits, pausing=frozenset(cause.limit for cause in self._causes))
        if causes:
            if not self._causes:
                self._paused_since_s = now_s
            self._causes = causes
        elif self._causes and now_s - self._paused_since_s >= SHORTEST_PAUSE_S:
            self._causes = ()

    def pause(self) -> Pause | None:
        """The pause that goes on."""
        if not self._causes:
            return None
        reason = " and ".join(cause.reason for cause in self._causes)
        until = " and ".join(cause.until for cause in self._causes)
        return Pause(reason=reason, until=until, since_s=self._paused_since_s)

    def decide(self, *, now_s: float, cpu_s: float) -> Decision:
        """What may be done now; `cpu_s` is the processor time this process has used."""
        until_s = None if self._duty is None else self._duty.rest_until_s(now_s=now_s, cpu_s=cpu_s)
        pause = self.pause()
        if pause is not None or until_s is None or self._limits.max_cpu is None:
            self._resting_since_s = None
            return pause or Run()
        if self._resting_since_s is None:
            self._resting_since_s = now_s
        return Throttle(max_cpu=self._limits.max_cpu, until_s=until_s, since_s=self._resting_since_s)


class DutyCycle:
    """Keeps the use of the processor at a share of one core.

    Time earns `share` seconds of processor time per second, of which at most `BURST_S` seconds' worth is kept, and use spends
    it; below zero there is rest. So in any `T` seconds at most `share * (T + BURST_S)` is used, and one step more.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._allowance_s = 0.0
        self._last: tuple[float, float] | None = None

    def rest_until_s(self, *, now_s: float, cpu_s: float) -> float | None:
        """When the next step may begin; None means now."""
        before_s, cpu_before_s = self._last or (now_s, cpu_s)
        self._last = (now_s, cpu_s)
        earned_s = self._share * (now_s - before_s) - (cpu_s - cpu_before_s)
        self._allowance_s = min(self._allowance_s + earned_s, self._share * BURST_S)
        if self._allowance_s >= 0:
            return None
        return now_s + max(SHORTEST_REST_S, -self._allowance_s / self._share)


def _causes(reading: Reading, limits: Limits, *, pausing: frozenset[str]) -> tuple[_Cause, ...]:
    """What asks for a pause; a limit that is pausing already does so up to its margin."""
    found = (cause(reading, limits, is_pausing=name in pausing) for name, cause in _LIMITS.items())
    return tuple(
        _Cause(limit=name, reason=words[0], until=words[1])
        for name, words in zip(_LIMITS, found, strict=True)
        if words is not None
    )


_Words = tuple[str, str] | None
"""Reason and until what, or None."""


class _Limit(Protocol):
    def __call__(self, reading: Reading, limits: Limits, *, is_pausing: bool) -> _Words: ...


def _battery(reading: Reading, limits: Limits, *, is_pausing: bool) -> _Words:
    lowest, percent = limits.min_battery_percent, reading.battery_percent
    if lowest is None or percent is None or not reading.on_battery:
        return None
    enough = min(100.0, lowest + BATTERY_MARGIN_PERCENT)
    if percent >= (enough if is_pausing else lowest):
        return None
    return f"battery at {percent:.0f} %", f"{enough:.0f} % or the charger"


def _charger(reading: Reading, limits: Limits, *, is_pausing: bool) -> _Words:
    return ("runs on battery", "the charger") if limits.only_charging and reading.on_battery else None


def _heat(reading: Reading, limits: Limits, *, is_pausing: bool) -> _Words:
    highest, found = limits.max_temperature_c, reading.temperature_c
    if highest is None or found is None:
        return None
    cool = highest - TEMPERATURE_MARGIN_C
    return (f"{found:.0f} °C hot", f"{cool:.0f} °C") if found > (cool if is_pausing else highest) else None


def _memory(reading: Reading, limits: Limits, *, is_pausing: bool) -> _Words:
    highest, available = limits.max_memory_pressure_percent, reading.memory_available_percent
    if reading.memory_pressure_percent is not None:
        return _pressure("memory", reading.memory_pressure_percent, highest, is_pausing=is_pausing)
    if highest is None or available is None:
        return None
    enough = LEAST_MEMORY_PERCENT + MEMORY_MARGIN_PERCENT
    if available >= (enough if is_pausing else LEAST_MEMORY_PERCENT):
        return None
    return f"{available:.0f} % of the memory available", f"{enough:.0f} %"


def _processor(reading: Reading, limits: Limits, *, is_pausing: bool) -> _Words:
    return _pressure("CPU", reading.cpu_pressure_percent, limits.max_cpu_pressure_percent, is_pausing=is_pausing)


def _pressure(of_what: str, found: float | None, highest: float | None, *, is_pausing: bool) -> _Words:
    if found is None or highest is None:
        return None
    low = highest * PRESSURE_MARGIN
    if found <= (low if is_pausing else highest):
        return None
    return f"{of_what} pressure at {found:.0f} %", f"{low:g} %"


_LIMITS: Final[dict[str, _Limit]] = {
    "battery": _battery,
    "charger": _charger,
    "temperature": _heat,
    "memory": _memory,
    "cpu": _processor,
}
