"""When a child process that ended is started again: pure decisions."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from sf_contract.errors import EXIT_CODES


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """At most `restarts` within `window_s`; the delay doubles from one restart to the next."""

    restarts: int = 5
    window_s: float = 600.0
    first_delay_s: float = 0.5

    def delay_s(self, crashes_s: Sequence[float], *, now_s: float) -> float | None:
        """Seconds until the next start; None when it has crashed too often.

        Args:
            crashes_s: times of all crashes so far, this one included, on the clock of `now_s`.
        """
        recent = sum(now_s - crash_s < self.window_s for crash_s in crashes_s)
        return None if recent > self.restarts else self.first_delay_s * 2 ** (recent - 1)


def is_known_failure(exit_code: int) -> bool:
    """True for the exit code of one of our errors: the child has said what is wrong, and another try would not help."""
    return exit_code in EXIT_CODES


def describe_exit(exit_code: int) -> str:
    """How a process ended, for people; negative codes are signals, as `subprocess` gives them."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in {*signal.Signals} else f"signal {-exit_code}"
    hint = "; the kernel's out-of-memory killer is the usual reason" if is_killed(exit_code) else ""
    return f"killed by {name}{hint}"


def is_killed(exit_code: int) -> bool:
    """True for SIGKILL, which the kernel sends when memory runs out."""
    return exit_code == -signal.SIGKILL
