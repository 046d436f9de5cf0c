"""What `sf-bench ingest` found."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sf_bench.ingest.device import Settled, shares
from sf_bench.ingest.disk import GroupRates, Rate
from sf_bench.ingest.samples import SampleShape
from sf_bench.ingest.statistics import jain_index, percentile
from sf_bench.ingest.watch import Reading, rss_growth
from sf_edge.bench.machine import Machine


class Waits(msgspec.Struct, frozen=True):
    """Milliseconds from sending a batch to its verdicts, of all batches that were settled; None when there were none."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Shares(msgspec.Struct, frozen=True):
    """What each of several devices with the same demand got.

    Attributes:
        jain: Jain's index of the devices' bytes.
        smallest, largest: share over the mean share.
    """

    devices: int
    jain: float
    smallest: float
    largest: float


class Load(msgspec.Struct, frozen=True):
    """One measurement of the ingest process.

    Attributes:
        seconds: its length; everything below is of this time.
        samples, nbytes: durable, and known to be so by their devices; payload bytes.
        cpu_s: processor time of ingest.
        clients_cpu_s: processor time of all simulated devices.
        written_bytes: what ingest caused to be written to the disk.
        rss_bytes: resident memory of ingest at the start, at the end and at most.
        rss_growth: KB per 1,000 samples.
        descriptors: most open files of ingest.
    """

    seconds: float
    samples: int
    nbytes: int
    waits: Waits
    cpu_s: float
    clients_cpu_s: float
    written_bytes: int
    rss_bytes: tuple[int, int, int]
    rss_growth: float | None
    descriptors: int

    @property
    def mb_per_s(self) -> float:
        """Durable payload, million bytes per second."""
        return self.nbytes / self.seconds / 1e6

    @property
    def cpu_s_per_gb(self) -> float:
        """Processor seconds of ingest per thousand million bytes of payload."""
        return self.cpu_s / self.nbytes * 1e9 if self.nbytes else float("nan")


class Crowd(msgspec.Struct, frozen=True):
    """Devices that all want to send as much as they may.

    Attributes:
        disk: 1 MiB groups appended and synced, just before and just after.
        connect_s: until everybody was welcomed.
        again: greetings and samples that had to be repeated.
    """

    devices: int
    shape: SampleShape
    encrypted: bool
    in_flight_bytes: int
    connect_s: float
    again: int
    load: Load
    shares: Shares
    disk: tuple[Rate, Rate]

    @property
    def of_disk(self) -> float:
        """Durable bytes over those of the disk alone."""
        return self.load.mb_per_s / (sum(rate.mb_per_s for rate in self.disk) / len(self.disk))


class Neighbours(msgspec.Struct, frozen=True):
    """Modest devices, and what they got beside a greedy one.

    Attributes:
        devices: modest ones.
        samples_per_s: what each of them makes.
        greedy_mb_per_s: what the greedy one got; None without one.
        shares: of the modest ones.
        served: the smallest part of its demand that a modest device got.
        waits: of the modest ones.
        load: of everybody.
    """

    devices: int
    encrypted: bool
    samples_per_s: float
    greedy_mb_per_s: float | None
    shares: Shares
    served: float
    waits: Waits
    load: Load


class Profile(msgspec.Struct, frozen=True):
    """Where ingest's time goes, under cProfile: seconds in a function itself, by its name; the largest first."""

    devices: int
    samples: int
    wall_s: float
    groups: int
    own_s: dict[str, float]


class Report(msgspec.Struct, frozen=True):
    """Everything."""

    machine: Machine
    folder: str
    small_syncs: Rate
    disk: tuple[GroupRates, ...]
    crowds: tuple[Crowd, ...]
    neighbours: tuple[Neighbours, ...]
    profile: Profile | None = None


def waits_of(settled: Sequence[Settled]) -> Waits:
    """Percentiles."""
    waited = [1e3 * one.waited_s for one in settled]
    return Waits(p50_ms=percentile(waited, 50), p95_ms=percentile(waited, 95), p99_ms=percentile(waited, 99))


def shares_of(settled: Sequence[Settled], devices: Sequence[int]) -> Shares:
    """How evenly these devices were served."""
    found = shares(settled, devices)
    mean = sum(found) / len(found)
    return Shares(
        devices=len(found),
        jain=jain_index(found),
        smallest=min(found) / mean if mean else 1.0,
        largest=max(found) / mean if mean else 1.0,
    )


def load_of(settled: Sequence[Settled], readings: Sequence[Reading], *, clients_cpu_s: float) -> Load:
    """Sums between the first reading and the last."""
    first, last = readings[0], readings[-1]
    return Load(
        seconds=last.at_s - first.at_s,
        samples=sum(one.samples for one in settled),
        nbytes=sum(one.nbytes for one in settled),
        waits=waits_of(settled),
        cpu_s=last.cpu_s - first.cpu_s,
        clients_cpu_s=clients_cpu_s,
        written_bytes=last.written_bytes - first.written_bytes,
        rss_bytes=(first.rss_bytes, last.rss_bytes, max(reading.rss_bytes for reading in readings)),
        rss_growth=rss_growth(readings),
        descriptors=max(reading.descriptors for reading in readings),
    )
