"""The soak: devices that keep sending to a server that keeps training, and readings of both processes over time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sf_bench.ingest.device import Demand, Device, largest_batch
from sf_bench.ingest.fleet import Fleet, allow_descriptors
from sf_bench.ingest.observe import check_store
from sf_bench.ingest.samples import SampleShape, Supply
from sf_bench.ingest.watch import Reading, read_process
from sf_bench.soak.flatness import Flatness, flatness_of
from sf_bench.soak.server import SoakServer, running_server
from sf_bench.soak.tiny_run import HIDDEN, LENGTHS, TinyRun, write_tiny_run
from sf_contract.errors import TrainingFailed
from sf_contract.limits import MIB

Say = Callable[[str], None]

FILL_BYTES: Final = 48 * MIB
"""Sent first and as fast as possible: more than SQLite's page cache (32 MiB) holds, which would otherwise fill up, and look
like a leak, while the memory is watched."""

FILL_DEVICES: Final = 2
DRAIN_S: Final = 60.0
READINGS: Final = 240
SHORTEST_INTERVAL_S: Final = 0.25
MEMORY_ALLOWED_BYTES: Final = 4 * MIB
DESCRIPTORS_ALLOWED: Final = 2.0


class SoakSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How long, and how much.

    Attributes:
        minutes: that memory and files are watched.
        warm_up_s: between the fill and the first reading.
        devices: that keep sending.
        samples_per_s: of all devices together.
        fill_bytes: payload before that.
    """

    minutes: Annotated[float, Meta(gt=0, le=10_000)] = 60.0
    warm_up_s: Annotated[float, Meta(ge=0, le=3600)] = 60.0
    devices: Annotated[int, Meta(ge=1, le=10_000)] = 8
    samples_per_s: Annotated[float, Meta(gt=0, le=100_000)] = 40.0
    fill_bytes: Annotated[int, Meta(ge=0)] = FILL_BYTES


class SoakReport(msgspec.Struct, frozen=True):
    """What was seen.

    Attributes:
        watched_s: time between the first and the last reading.
        samples, steps: confirmed and trained meanwhile.
        stored: samples in the store at the end.
        found: memory and files of both processes.
    """

    watched_s: float
    samples: int
    steps: int
    stored: int
    found: tuple[Flatness, ...]

    @property
    def is_flat(self) -> bool:
        """True when nothing grew by more than is allowed."""
        return all(one.is_flat for one in self.found)


def soak(settings: SoakSettings, *, keep: Path | None, say: Say) -> SoakReport:
    """Run it.

    Args:
        keep: folder that keeps everything; None: a temporary one.

    Raises:
        ServerUnreachable, TrainingFailed: the server did not come up, crashed, stopped training, or did not leave when told.
        StoreError: the store does not hold what was confirmed.
    """
    allow_descriptors(settings.devices + FILL_DEVICES)
    with _folder(keep) as folder:
        tiny = write_tiny_run(folder)
        with running_server(tiny, folder) as server:
            filled = _fill(server, tiny, settings, say=say)
            return _watch(server, tiny, settings, filled=filled, say=say)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with nullcontext(str(keep)) if keep is not None else tempfile.TemporaryDirectory(prefix="sf-bench-soak-") as path:
        yield Path(path).resolve()


def _fleet(
    server: SoakServer, tiny: TinyRun, demands: Sequence[Demand], *, name: str, first: int, lengths: Sequence[int]
) -> Fleet:
    """Devices with numbers from `first` on, whose samples have these lengths in turn."""
    supplies = [
        Supply(shape, bundle_id=tiny.bundle.bundle_id, most=largest_batch(shape.nbytes))
        for shape in (SampleShape(hidden=HIDDEN, tokens=tokens) for tokens in lengths)
    ]
    devices = [
        Device(
            first + place,
            name=f"{name}-{place}",
            supply=supplies[place % len(supplies)],
            demand=demand,
            now_s=time.monotonic(),
        )
        for place, demand in enumerate(demands)
    ]
    return Fleet(server.address, devices)


def _fill(server: SoakServer, tiny: TinyRun, settings: SoakSettings, *, say: Say) -> int:
    """Send the fill; samples that were confirmed."""
    demands = [Demand(in_flight_bytes=1 * MIB)] * FILL_DEVICES
    longest = max(LENGTHS)
    wanted = settings.fill_bytes // SampleShape(hidden=HIDDEN, tokens=longest).nbytes
    say(f"sf-bench: filling the store with about {settings.fill_bytes / MIB:.0f} MiB")
    with _fleet(server, tiny, demands, name="fill", first=settings.devices, lengths=(longest,)) as fleet:
        fleet.greet()
        fleet.begin()
        while _confirmed(fleet) < wanted and settings.fill_bytes > 0:
            fleet.run(time.monotonic() + 0.5, every_s=1.0, look=server.check_alive)
        fleet.drain(patience_s=DRAIN_S)
        return _confirmed(fleet)


def _watch(server: SoakServer, tiny: TinyRun, settings: SoakSettings, *, filled: int, say: Say) -> SoakReport:
    rate = settings.samples_per_s / settings.devices
    demands = [
        Demand(in_flight_bytes=1 * MIB, samples_per_s=rate, phase_s=place / settings.samples_per_s)
        for place in range(settings.devices)
    ]
    seconds = settings.minutes * 60
    ingest: list[Reading] = []
    trainer: list[Reading] = []
    with _fleet(server, tiny, demands, name="device", first=0, lengths=LENGTHS) as fleet:
        fleet.greet()
        fleet.begin()
        say(f"sf-bench: {settings.devices} devices send {settings.samples_per_s:g} samples/s in all")
        fleet.run(time.monotonic() + settings.warm_up_s, every_s=1.0, look=server.check_alive)
        began_steps, told_s = server.steps(), time.monotonic()

        def look() -> None:
            nonlocal told_s
            server.check_alive()
            now_s, samples = time.monotonic(), _confirmed(fleet)
            ingest.append(read_process(server.ingest, at_s=now_s, samples=samples))
            trainer.append(read_process(server.trainer, at_s=now_s, samples=samples))
            if now_s - told_s >= 60:
                told_s = now_s
                say(f"sf-bench: {_now(ingest, trainer)}, {server.steps() - began_steps} steps")

        every_s = max(SHORTEST_INTERVAL_S, seconds / READINGS)
        fleet.run(time.monotonic() + seconds, every_s=every_s, look=look)
        steps = server.steps() - began_steps
        is_whole = fleet.drain(patience_s=DRAIN_S)
        confirmed = filled + _confirmed(fleet)
    stored = server.stored()
    check_store(stored, confirmed, is_whole=is_whole)
    if steps == 0:
        raise TrainingFailed("the trainer made no step while it was watched", cure="look at its log with --keep")
    return SoakReport(
        watched_s=ingest[-1].at_s - ingest[0].at_s,
        samples=ingest[-1].samples - ingest[0].samples,
        steps=steps,
        stored=stored,
        found=(*_judged("ingest", ingest), *_judged("trainer", trainer)),
    )


def _judged(name: str, readings: Sequence[Reading]) -> tuple[Flatness, Flatness]:
    at_s = [reading.at_s for reading in readings]
    memory = [float(reading.rss_bytes) for reading in readings]
    files = [float(reading.descriptors) for reading in readings]
    return (
        flatness_of(f"{name}: resident memory", "bytes", at_s=at_s, values=memory, least_allowed=MEMORY_ALLOWED_BYTES),
        flatness_of(f"{name}: open files", "files", at_s=at_s, values=files, least_allowed=DESCRIPTORS_ALLOWED),
    )


def _confirmed(fleet: Fleet) -> int:
    return sum(device.acknowledged for device in fleet.devices)


def _now(ingest: Sequence[Reading], trainer: Sequence[Reading]) -> str:
    return ", ".join(
        f"{name} {readings[-1].rss_bytes / MIB:.1f} MiB and {readings[-1].descriptors} files"
        for name, readings in (("ingest", ingest), ("trainer", trainer))
    )
