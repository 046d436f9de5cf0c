"""The governor at work: reads the machine's state now and then, and tells the loop, the server and people what it decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, assert_never

from sf_contract.limits import MAX_ACTIVITY_CHARACTERS
from sf_edge.actions import Wait
from sf_edge.clock import Clock
from sf_edge.governor.activity import ActivityFile
from sf_edge.governor.decisions import Decision, Governor, Limits, Pause, Reading, Run, Throttle
from sf_edge.governor.probe import Probe
from sf_edge.progress import Say, WaitNotices
from sf_edge.settings import DeviceSettings, cpu_share

READ_EVERY_S: Final = 5.0
READING_SHARE: Final = 0.002
"""At most this share of a core goes into reading sensors, some of which are slow."""

DEFAULT_MIN_BATTERY_PERCENT: Final = 20.0
DEFAULT_MAX_TEMPERATURE_C: Final = 75.0
DEFAULT_MAX_MEMORY_PRESSURE_PERCENT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Senses:
    """Where the pace gets the machine's state and the time from, and where it leaves word."""

    probe: Probe
    clock: Clock
    say: Say
    activity_file: ActivityFile


class Pace:
    """Whether the next row may be computed now."""

    def __init__(self, limits: Limits, senses: Senses) -> None:
        self._limits = limits
        self._governor = Governor(limits)
        self._probe = senses.probe
        self._clock = senses.clock
        self._file = senses.activity_file
        self._pause_notices = WaitNotices(senses.say, opening="paused: ")
        self._rest_notices = WaitNotices(senses.say, opening="resting ")
        self._next_look_s = float("-inf")
        self._decision: Decision = Run()

    def look(self) -> None:
        """Read the machine's state if it is time."""
        now_s = self._clock.now_s()
        if now_s < self._next_look_s:
            return
        cpu_before_s = self._clock.cpu_s()
        self._governor.note(self._probe.read(), now_s)
        used_s = self._clock.cpu_s() - cpu_before_s
        self._next_look_s = now_s + max(READ_EVERY_S, used_s / READING_SHARE)
        self._file.note(self.activity() or "running", is_paused=self._governor.pause() is not None)

    def may_compute(self) -> bool:
        """True when the next row may be computed now; else ask again at `due_s`."""
        self._decision = self._governor.decide(now_s=self._clock.now_s(), cpu_s=self._clock.cpu_s())
        return isinstance(self._decision, Run)

    @property
    def is_resting(self) -> bool:
        """True when the last answer of `may_compute` was a short no, because of the share of a core."""
        return isinstance(self._decision, Throttle)

    @property
    def due_s(self) -> float:
        """When to `look` and ask again after a no."""
        match self._decision:
            case Throttle(until_s=until_s):
                return min(until_s, self._next_look_s)
            case Run() | Pause():
                return self._next_look_s
        assert_never(self._decision)

    def activity(self) -> str | None:
        """What the server and `sf-edge status` are told; None while nothing holds the device back."""
        pause = self._governor.pause()
        if pause is not None:
            return f"paused: {pause.text()}"[:MAX_ACTIVITY_CHARACTERS]
        share = self._limits.max_cpu
        return None if share is None else f"uses at most {share:.0%} of a core"

    def tell(self, *, has_work: bool) -> None:
        """Tell people about a pause or a rest that lasts long, if it keeps a row waiting."""
        now_s = self._clock.now_s()
        pausing = resting = None
        if has_work:
            match self._decision:
                case Pause(since_s=since_s) as pause:
                    pausing = Wait(what=f"{pause.text()},", since_s=since_s)
                case Throttle(max_cpu=share, since_s=since_s):
                    resting = Wait(what=f"to stay below {share:.0%} of a core,", since_s=since_s)
                case Run():
                    pass
        self._pause_notices.note(pausing, now_s)
        self._rest_notices.note(resting, now_s)

    def __enter__(self) -> Pace:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()


def limits_of(settings: DeviceSettings) -> Limits:
    """The limits that settings ask for, defaults filled in; without the governor only the share of a core is kept.

    Raises:
        UsageError: `max_cpu` is no share.
    """
    share = None if settings.max_cpu is None else cpu_share(settings.max_cpu)
    if settings.no_governor:
        return Limits(max_cpu=share)
    return Limits(
        min_battery_percent=_given(settings.min_battery, DEFAULT_MIN_BATTERY_PERCENT),
        only_charging=settings.only_charging,
        max_temperature_c=_given(settings.max_temperature, DEFAULT_MAX_TEMPERATURE_C),
        max_memory_pressure_percent=_given(settings.max_memory_pressure, DEFAULT_MAX_MEMORY_PRESSURE_PERCENT),
        max_cpu_pressure_percent=settings.max_cpu_pressure,
        max_cpu=share,
    )


def blind_spots(settings: DeviceSettings, reading: Reading) -> list[str]:
    """Which settings that were given can have no effect on this machine, in words."""
    has_memory = reading.memory_pressure_percent is not None or reading.memory_available_percent is not None
    asked = (
        ("--min-battery", settings.min_battery is not None, reading.battery_percent is not None, "battery"),
        ("--only-charging", settings.only_charging, reading.on_battery is not None, "battery"),
        ("--max-temperature", settings.max_temperature is not None, reading.temperature_c is not None, "temperature"),
        ("--max-memory-pressure", settings.max_memory_pressure is not None, has_memory, "memory pressure"),
        (
            "--max-cpu-pressure", settings.max_cpu_pressure is not None,
            reading.cpu_pressure_percent is not None, "CPU pressure",
        ),
    )  # fmt: skip
    return [
        f"no {what} can be read on this machine, so {option} never pauses"
        for option, is_given, is_known, what in asked
        if is_given and not is_known
    ]


def _given(value: float | None, default: float) -> float:
    return default if value is None else value
