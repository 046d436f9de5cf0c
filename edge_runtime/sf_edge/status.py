"""`sf-edge status`: what an outbox holds."""

from __future__ import annotations

from collections import Counter

import msgspec

from sf_contract.errors import one_line
from sf_edge.governor.activity import Activity
from sf_edge.outbox.records import OutboxStatus, SetAside
from sf_edge.progress import readable_bytes
from sf_edge.sources import SourcePosition

SET_ASIDE_SHOWN = 10
SOURCES_SHOWN = 10


def status_json(status: OutboxStatus, activity: Activity | None) -> dict[str, object]:
    """The status for machines."""
    return {
        "activity": None if activity is None else msgspec.to_builtins(activity),
        "outbox_id": status.outbox_id,
        "device": status.owner.device,
        "bundle_id": status.owner.bundle_id,
        "sources": [
            {"name": position.source, "line": position.line, "bytes": position.nbytes} for position in status.positions
        ],
        "waiting": status.waiting_samples,
        "waiting_bytes": status.waiting_bytes,
        "counters": msgspec.to_builtins(status.counters),
        "set_aside": [msgspec.to_builtins(item) for item in status.set_aside],
    }


def status_text(status: OutboxStatus, activity: Activity | None, *, wall_s: float) -> str:
    """The status for a person."""
    counters = status.counters
    return "\n".join(
        (
            f"outbox {status.outbox_id} of device {status.owner.device}, bundle {status.owner.bundle_id[:12]}",
            f"  {activity_line(activity, wall_s=wall_s)}",
            f"  {counters.rows} rows, {counters.skipped} skipped, {counters.samples} samples, {counters.cut} cut",
            *source_lines(status.positions),
            f"  {counters.acknowledged} stored on the server, {counters.rejected} rejected, "
            f"{status.waiting_samples} waiting ({readable_bytes(status.waiting_bytes)})",
            f"  {counters.forward_passes} forward passes, {counters.uploaded_samples} samples uploaded, "
            f"{counters.resent_samples} sent again, {counters.cpu_s:.1f} CPU seconds",
            f"  {readable_bytes(counters.bytes_up)} up, {readable_bytes(counters.bytes_down)} down",
            *set_aside_lines(status.set_aside),
        )
    )


def source_lines(positions: list[SourcePosition]) -> list[str]:
    """How far each file was taken, the first ones when they are many."""
    shown = [f"    {position.source} up to line {position.line}" for position in positions[:SOURCES_SHOWN]]
    rest = len(positions) - len(shown)
    return [*shown, *([f"    and {rest} more files (--json lists them all)"] if rest else [])]


def activity_line(activity: Activity | None, *, wall_s: float) -> str:
    """What the device is doing, and since when."""
    if activity is None:
        return "not running"
    return f"{activity.text}, since {max(0.0, wall_s - activity.since):.0f} s"


def set_aside_lines(items: list[SetAside]) -> list[str]:
    """What was set aside: totals by reason, then the first ones in full."""
    totals = Counter(item.code for item in items)
    lines = [f"  set aside, {code}: {count}" for code, count in sorted(totals.items())]
    shown = [f"    {_place(item)}: {item.code}: {one_line(item.detail)}" for item in items[:SET_ASIDE_SHOWN]]
    rest = len(items) - len(shown)
    return [*lines, *shown, *([f"    and {rest} more (--json lists them all)"] if rest else [])]


def _place(item: SetAside) -> str:
    return f"{item.source}, line {item.line}" if item.source else f"line {item.line}"
