"""Did the machine slow itself down? Clock against its limit, the processor's throttle counters, the Raspberry Pi's firmware."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_edge.bench.report import Throttling
from sf_edge.governor.kernel_files import ReadLine, line_or_none, number_or_none, read_line

LOWEST_BUSY_SHARE: Final = 0.8
"""Of its limit; a busy core whose clock stays below it was slowed down. All-core turbo stays above it on common processors."""

FIRMWARE_FLAGS: Final = {
    0: "supply voltage too low",
    1: "clock capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""Bits of the Raspberry Pi's `get_throttled` that hold now; 16 higher, the same since start-up. From the firmware's manual."""
_SINCE_START: Final = 16


@dataclass(frozen=True, slots=True)
class Look:
    """What the machine says at one moment; None where it says nothing.

    Attributes:
        busiest_khz: clock of the fastest running core, where the measured thread most likely is.
        limit_khz: the highest clock the hardware allows.
        events: the processor's count of its own slow-downs.
        firmware: the Raspberry Pi's `get_throttled`.
    """

    busiest_khz: int | None
    limit_khz: int | None
    events: int | None
    firmware: int | None


def look_at(root: Path = Path("/"), read: ReadLine = read_line) -> Look:
    """Read everything once; call it right after work, before the clock falls again."""
    processors = root / "sys/devices/system/cpu"
    events = [
        *processors.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"),
        *processors.glob("cpu0/thermal_throttle/package_throttle_count"),
    ]
    return Look(
        busiest_khz=max(_numbers(processors.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"), read), default=None),
        limit_khz=max(_numbers(processors.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq"), read), default=None),
        events=sum(counts) if (counts := _numbers(events, read)) else None,
        firmware=_firmware(root, read),
    )


def judge(looks: Sequence[Look]) -> Throttling:
    """What the looks, in order of time, tell together."""
    clocks = [look.busiest_khz for look in looks if look.busiest_khz is not None]
    limit_khz = next((look.limit_khz for look in looks if look.limit_khz is not None), None)
    events = [look.events for look in looks if look.events is not None]
    firmware = [look.firmware for look in looks if look.firmware is not None]
    readable = (bool(clocks) and limit_khz is not None, bool(events), bool(firmware))
    evidence = (*_clock_evidence(clocks, limit_khz), *_event_evidence(events), *_firmware_evidence(firmware))
    return Throttling(
        seen=bool(evidence) if any(readable) else None,
        evidence=evidence,
        median_mhz=statistics.median(clocks) / 1e3 if clocks else None,
        limit_mhz=None if limit_khz is None else limit_khz / 1e3,
        why_unknown=None if any(readable) else "this machine shows no clock, throttle counter or firmware flag",
    )


def _clock_evidence(clocks: Sequence[int], limit_khz: int | None) -> list[str]:
    if not clocks or not limit_khz:
        return []
    share = statistics.median(clocks) / limit_khz
    return [f"the clock was at {share:.0%} of its limit"] if share < LOWEST_BUSY_SHARE else []


def _event_evidence(events: Sequence[int]) -> list[str]:
    more = events[-1] - events[0] if events else 0
    return [f"the processor slowed itself down {more} times"] if more > 0 else []


def _firmware_evidence(firmware: Sequence[int]) -> list[str]:
    """A flag counts when it held at a look, or when it was first set since start-up while the looks were taken."""
    if not firmware:
        return []
    newly_set = firmware[-1] & ~firmware[0]
    held = {bit for bit in FIRMWARE_FLAGS for value in firmware if value >> bit & 1}
    new = {bit for bit in FIRMWARE_FLAGS if newly_set >> (bit + _SINCE_START) & 1}
    return [f"firmware: {FIRMWARE_FLAGS[bit]}" for bit in sorted(held | new)]


def _firmware(root: Path, read: ReadLine) -> int | None:
    path = next((root / "sys/devices/platform").glob("soc*/soc*firmware/get_throttled"), None)
    text = None if path is None else line_or_none(path, read)
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None


def _numbers(paths: Iterable[Path], read: ReadLine) -> list[int]:
    return [number for path in paths if (number := number_or_none(path, read)) is not None]
