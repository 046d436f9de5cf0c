"""`sf-edge run` with a session that is not patient; its settings come as JSON. Nothing else differs from the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from sf_contract.command import run_command
from sf_edge.clock import SYSTEM_CLOCK
from sf_edge.interrupts import Interrupts
from sf_edge.run import run_until
from sf_edge.session import Timing
from sf_edge.settings import RunSettings

IMPATIENT: Final = Timing(
    ping_after_s=0.4, answer_timeout_s=2.0, first_backoff_s=0.1, longest_backoff_s=0.5, shortest_hello_interval_s=0.1
)


def _run(arguments: Sequence[str]) -> int:
    settings = msgspec.json.decode(arguments[0], type=RunSettings)
    with Interrupts() as interrupts:
        return run_until(settings, interrupts, clock=SYSTEM_CLOCK, timing=IMPATIENT)


if __name__ == "__main__":
    sys.exit(run_command("sf-edge", _run))
