"""What `sf-bench ingest` found, as Markdown that is also readable on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sf_bench.ingest.disk import GroupRates
from sf_bench.ingest.results import Crowd, Load, Neighbours, Profile, Report, Waits
from sf_contract.limits import KIB

PROFILE_LINES: Final = 20

_DISK_HEAD: Final = ("group KiB", "file + fsync MB/s", "fsyncs/s", "SQLite commits MB/s", "store alone MB/s")
_CROWD_HEAD: Final = (
    "devices",
    "sample",
    "link",
    "durable MB/s",
    "samples/s",
    "x disk",
    "written / payload",
    "ack p50 / p95 / p99 ms",
    "ingest CPU-s per GB",
    "cores: ingest, devices",
)
_SHARE_HEAD: Final = (
    "devices",
    "sample",
    "link",
    "Jain index",
    "smallest - largest share",
    "RSS MB first / last / most",
    "RSS KB per 1,000 samples",
    "open files",
    "all welcome after s",
    "repeated",
)
_NEIGHBOUR_HEAD: Final = (
    "modest devices",
    "samples/s each",
    "the greedy one's MB/s",
    "worst served",
    "Jain index",
    "ack p50 / p95 / p99 ms",
    "all MB/s",
    "cores: ingest, devices",
)


def markdown_of(report: Report) -> str:
    """Conditions and tables; ends with a newline."""
    parts = [
        f"Machine: {report.machine.line}; 4 KiB written and synced {report.small_syncs.per_s:,.0f} times per second.",
        _table(_DISK_HEAD, map(_disk_cells, report.disk)),
        _table(_CROWD_HEAD, map(_crowd_cells, report.crowds)),
        _table(_SHARE_HEAD, map(_share_cells, report.crowds)),
    ]
    if report.neighbours:
        parts.append(_table(_NEIGHBOUR_HEAD, map(_neighbour_cells, report.neighbours)))
    if report.profile is not None:
        parts.append(_profile_text(report.profile))
    return "\n\n".join(parts) + "\n"


def _disk_cells(rates: GroupRates) -> tuple[str, ...]:
    return (
        f"{rates.group_bytes // KIB:,}",
        f"{rates.file.mb_per_s:.1f}",
        f"{rates.file.per_s:.0f}",
        f"{rates.sqlite.mb_per_s:.1f}",
        f"{rates.store.mb_per_s:.1f}",
    )


def _crowd_cells(crowd: Crowd) -> tuple[str, ...]:
    load = crowd.load
    return (
        *_who(crowd),
        f"{load.mb_per_s:.1f}",
        f"{load.samples / load.seconds:,.0f}",
        f"{crowd.of_disk:.2f}",
        f"{load.written_bytes / max(1, load.nbytes):.2f}",
        _waits(load.waits),
        f"{load.cpu_s_per_gb:.1f}",
        _cores(load),
    )


def _share_cells(crowd: Crowd) -> tuple[str, ...]:
    load, shares = crowd.load, crowd.shares
    return (
        *_who(crowd),
        f"{shares.jain:.4f}",
        f"{shares.smallest:.2f} - {shares.largest:.2f}",
        " / ".join(f"{nbytes / 1e6:.0f}" for nbytes in load.rss_bytes),
        _number(load.rss_growth, 1),
        str(load.descriptors),
        f"{crowd.connect_s:.2f}",
        str(crowd.again),
    )


def _neighbour_cells(found: Neighbours) -> tuple[str, ...]:
    return (
        f"{found.devices}, {'encrypted' if found.encrypted else 'clear'}",
        f"{found.samples_per_s:g}",
        _number(found.greedy_mb_per_s, 1),
        f"{found.served:.1%}",
        f"{found.shares.jain:.4f}",
        _waits(found.waits),
        f"{found.load.mb_per_s:.1f}",
        _cores(found.load),
    )


def _profile_text(profile: Profile) -> str:
    rows = [
        (f"`{name}`", f"{seconds:.2f}", f"{seconds / profile.wall_s:.1%}")
        for name, seconds in list(profile.own_s.items())[:PROFILE_LINES]
    ]
    title = (
        f"Under cProfile: {profile.devices} devices, {profile.samples:,} samples in {profile.groups} groups, "
        f"{profile.wall_s:.1f} s."
    )
    return f"{title}\n\n{_table(('where', 'seconds in itself', 'of all'), rows)}"


def _who(crowd: Crowd) -> tuple[str, str, str]:
    return str(crowd.devices), str(crowd.shape), "encrypted" if crowd.encrypted else "clear"


def _cores(load: Load) -> str:
    return f"{load.cpu_s / load.seconds:.2f}, {load.clients_cpu_s / load.seconds:.2f}"


def _waits(waits: Waits) -> str:
    return " / ".join(_number(value, 0) for value in (waits.p50_ms, waits.p95_ms, waits.p99_ms))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    shown.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(shown)
