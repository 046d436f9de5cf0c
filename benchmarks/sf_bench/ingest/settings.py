"""Settings of `sf-bench ingest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sf_bench.ingest.samples import SampleShape
from sf_contract.limits import KIB, MIB

SMALL: Final = SampleShape(hidden=576, tokens=25)
LARGE: Final = SampleShape(hidden=2048, tokens=128)
GROUPS: Final = (64 * KIB, 1 * MIB, 16 * MIB)

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Devices = Annotated[int, Meta(ge=1, le=100_000)]


class IngestSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure.

    Attributes:
        folder: on the disk that is measured.
        devices: sizes of the crowds.
        shapes: samples of the crowds.
        encrypted: links of the crowds.
        seconds: length of one measurement.
        warm_up_s: before it.
        in_flight_bytes: payload that a device of a crowd keeps under way.
        groups: sizes of the disk's groups.
        disk_s: length of each of the disk's measurements.
        modest_samples_per_s: of each device beside the greedy one.
        is_greedy_tried: measure one greedy device among modest ones.
        is_profiled: measure once more under cProfile.
    """

    folder: Path = Path()
    devices: Annotated[tuple[Devices, ...], Meta(min_length=1)] = (1, 8, 64, 500)
    shapes: Annotated[tuple[SampleShape, ...], Meta(min_length=1)] = (SMALL, LARGE)
    encrypted: tuple[bool, ...] = (False, True)
    seconds: Seconds = 20.0
    warm_up_s: Seconds = 5.0
    in_flight_bytes: Annotated[int, Meta(ge=1)] = 600_000
    groups: tuple[int, ...] = GROUPS
    disk_s: Seconds = 2.0
    modest_samples_per_s: Annotated[float, Meta(gt=0)] = 1.0
    is_greedy_tried: bool = True
    is_profiled: bool = False
