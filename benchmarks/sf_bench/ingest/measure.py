"""The measurements of `sf-bench ingest`, one after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sf_bench.ingest.device import Demand, largest_batch, shares
from sf_bench.ingest.disk import GroupRates, file_rate, group_rates, small_syncs
from sf_bench.ingest.fleet import allow_descriptors
from sf_bench.ingest.observe import Period, observe
from sf_bench.ingest.profiling import profile_of
from sf_bench.ingest.results import Crowd, Neighbours, Profile, Report, shares_of, waits_of
from sf_bench.ingest.samples import SampleShape, Supply
from sf_bench.ingest.server import ingest_for
from sf_bench.ingest.settings import IngestSettings
from sf_contract.limits import MIB
from sf_edge.bench.machine import describe_machine
from sf_edge.session import MOST_IN_FLIGHT_BYTES

REFERENCE_BYTES: Final = 1 * MIB
"""Groups of the disk's measurements around each crowd."""

PROFILED_DEVICES: Final = 64

Say = Callable[[str], None]


def measure(settings: IngestSettings, *, say: Say) -> Report:
    """Everything that the settings ask for.

    Raises:
        UsageError: the system does not allow so many connections.
        ServerUnreachable: the ingest process ended, or did not welcome everybody.
        StoreError: the store does not hold what was confirmed.
    """
    allow_descriptors(max(settings.devices))
    with tempfile.TemporaryDirectory(prefix="sf-bench-disk-", dir=settings.folder) as scratch:
        say(f"sf-bench: the disk alone, {settings.disk_s:g} s for each of {1 + 3 * len(settings.groups)} ways")
        syncs = small_syncs(Path(scratch), seconds=settings.disk_s)
        disk = tuple(_group_rates(Path(scratch), group, settings) for group in settings.groups)
    crowds = tuple(
        _crowd(devices, shape, settings, encrypted=encrypted, say=say)
        for shape in settings.shapes
        for devices in settings.devices
        for encrypted in settings.encrypted
    )
    return Report(
        machine=describe_machine(),
        folder=str(settings.folder.resolve()),
        small_syncs=syncs,
        disk=disk,
        crowds=crowds,
        neighbours=_neighbours(settings, say=say) if settings.is_greedy_tried else (),
        profile=_profile(settings, say=say) if settings.is_profiled else None,
    )


def _group_rates(scratch: Path, group_bytes: int, settings: IngestSettings) -> GroupRates:
    shape = settings.shapes[0]
    supply = Supply(shape, bundle_id="0" * 64, most=largest_batch(shape.nbytes))
    return group_rates(scratch, group_bytes, supply, seconds=settings.disk_s)


def _crowd(devices: int, shape: SampleShape, settings: IngestSettings, *, encrypted: bool, say: Say) -> Crowd:
    say(f"sf-bench: {devices} devices, {shape}, {'encrypted' if encrypted else 'in the clear'}")
    demands = [Demand(in_flight_bytes=max(settings.in_flight_bytes, shape.nbytes))] * devices
    before = file_rate(settings.folder, REFERENCE_BYTES, seconds=settings.disk_s)
    with ingest_for(devices, shape, folder=settings.folder, encrypted=encrypted) as server:
        observed = observe(server, demands, shape, _period(settings))
    after = file_rate(settings.folder, REFERENCE_BYTES, seconds=settings.disk_s)
    return Crowd(
        devices=devices,
        shape=shape,
        encrypted=encrypted,
        in_flight_bytes=demands[0].in_flight_bytes,
        connect_s=observed.connect_s,
        again=observed.again,
        load=observed.load,
        shares=shares_of(observed.settled, range(devices)),
        disk=(before, after),
    )


def _neighbours(settings: IngestSettings, *, say: Say) -> tuple[Neighbours, ...]:
    """Modest devices alone, then with a greedy one in the last place."""
    modest = max(1, max(settings.devices) - 1)
    return tuple(_neighbourhood(modest, settings, with_greedy=with_greedy, say=say) for with_greedy in (False, True))


def _neighbourhood(modest: int, settings: IngestSettings, *, with_greedy: bool, say: Say) -> Neighbours:
    say(f"sf-bench: {modest} modest devices, {'and a greedy one' if with_greedy else 'alone'}")
    shape, rate = settings.shapes[0], settings.modest_samples_per_s
    demands = [
        Demand(in_flight_bytes=MOST_IN_FLIGHT_BYTES, samples_per_s=rate, phase_s=number / modest / rate)
        for number in range(modest)
    ]
    if with_greedy:
        demands.append(Demand(in_flight_bytes=MOST_IN_FLIGHT_BYTES))
    with ingest_for(len(demands), shape, folder=settings.folder, encrypted=settings.encrypted[-1]) as server:
        observed = observe(server, demands, shape, _period(settings))
    load, theirs = observed.load, [one for one in observed.settled if one.device < modest]
    demanded_bytes = rate * load.seconds * shape.nbytes
    greedy_bytes = shares(observed.settled, [modest])[0]
    return Neighbours(
        devices=modest,
        encrypted=settings.encrypted[-1],
        samples_per_s=rate,
        greedy_mb_per_s=greedy_bytes / load.seconds / 1e6 if with_greedy else None,
        shares=shares_of(theirs, range(modest)),
        served=min(shares(theirs, range(modest))) / demanded_bytes,
        waits=waits_of(theirs),
        load=load,
    )


def _profile(settings: IngestSettings, *, say: Say) -> Profile:
    shape, devices = settings.shapes[0], min(PROFILED_DEVICES, max(settings.devices))
    say(f"sf-bench: {devices} devices, {shape}, under cProfile")
    demands = [Demand(in_flight_bytes=settings.in_flight_bytes)] * devices
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "ingest.prof"
        options = ("-m", "cProfile", "-o", str(file))
        with ingest_for(devices, shape, folder=settings.folder, encrypted=False, python_options=options) as server:
            observe(server, demands, shape, _period(settings))
            samples = server.stored()
        return profile_of(file, devices=devices, samples=samples)


def _period(settings: IngestSettings) -> Period:
    return Period(warm_up_s=settings.warm_up_s, seconds=settings.seconds)
