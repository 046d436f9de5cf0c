"""Where the device process gets its times from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Times in seconds: a monotonic clock, the process's CPU time, and the time since 1970."""

    now_s: Callable[[], float]
    cpu_s: Callable[[], float]
    wall_s: Callable[[], float] = time.time


SYSTEM_CLOCK = Clock(now_s=time.monotonic, cpu_s=time.process_time)
