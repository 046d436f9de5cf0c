"""One ingest process and one fleet for a while: what was settled, and what the process looked like meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sf_bench.ingest.device import Demand, Device, Settled, largest_batch
from sf_bench.ingest.fleet import Fleet
from sf_bench.ingest.results import Load, load_of
from sf_bench.ingest.samples import SampleShape, Supply
from sf_bench.ingest.server import Server, device_name
from sf_bench.ingest.watch import Reading, read_process
from sf_contract.errors import StoreError

DRAIN_S: Final = 60.0
LOOK_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Period:
    """How long."""

    warm_up_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What happened after the warm-up.

    Attributes:
        connect_s: until everybody was welcomed.
        again: greetings and samples that had to be repeated, from the start.
    """

    settled: tuple[Settled, ...]
    readings: tuple[Reading, ...]
    clients_cpu_s: float
    connect_s: float
    again: int

    @property
    def load(self) -> Load:
        """In sums."""
        return load_of(self.settled, self.readings, clients_cpu_s=self.clients_cpu_s)


def observe(server: Server, demands: Sequence[Demand], shape: SampleShape, period: Period) -> Observed:
    """Let a fleet with these demands send to a server.

    Raises:
        ServerUnreachable: somebody was not welcomed.
        StoreError: afterwards the store does not hold what was confirmed.
    """
    supply = Supply(shape, bundle_id=server.bundle_id, most=largest_batch(shape.nbytes))
    devices = [
        Device(number, name=device_name(number), supply=supply, demand=demand, now_s=time.monotonic())
        for number, demand in enumerate(demands)
    ]

    def look() -> Reading:
        confirmed = sum(device.acknowledged for device in devices)
        return read_process(server.pid, at_s=time.monotonic(), samples=confirmed)

    with Fleet(server.address, devices, server.keys) as fleet:
        connect_s = fleet.greet()
        fleet.begin()
        fleet.run(time.monotonic() + period.warm_up_s, every_s=period.warm_up_s, look=lambda: None)
        readings = [look()]
        began_cpu_s = time.process_time()
        settled = fleet.run(
            readings[0].at_s + period.seconds, every_s=LOOK_EVERY_S, look=lambda: readings.append(look())
        )
        clients_cpu_s = time.process_time() - began_cpu_s
        readings.append(look())
        is_whole = fleet.drain(patience_s=DRAIN_S)
    check_store(server.stored(), sum(device.acknowledged for device in devices), is_whole=is_whole)
    return Observed(
        settled=tuple(settled),
        readings=tuple(readings),
        clients_cpu_s=clients_cpu_s,
        connect_s=connect_s,
        again=sum(device.greetings - 1 + device.repeats for device in devices),
    )


def check_store(stored: int, confirmed: int, *, is_whole: bool) -> None:
    """Nothing that was confirmed is missing; and where all verdicts came (`is_whole`), nothing else is there.

    Raises:
        StoreError: see above.
    """
    if stored < confirmed or (is_whole and stored != confirmed):
        raise StoreError(
            f"the server confirmed {confirmed} samples and its store holds {stored}",
            cure="report this: nothing that was confirmed may be lost, or stored twice",
        )
