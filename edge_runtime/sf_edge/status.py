"""`sf-edge status`: what an outbox holds."""

from __future__ import annotations

from collections import Counter

import msgspec

from sf_edge.outbox_records import OutboxStatus, SetAside
from sf_edge.progress import readable_bytes

SET_ASIDE_SHOWN = 10


def status_json(status: OutboxStatus) -> dict[str, object]:
    """The status for machines."""
    return {
        "outbox_id": status.outbox_id,
        "device": status.owner.device,
        "bundle_id": status.owner.bundle_id,
        "line": status.position.line,
        "waiting": status.waiting_samples,
        "waiting_bytes": status.waiting_bytes,
        "counters": msgspec.to_builtins(status.counters),
        "set_aside": [msgspec.to_builtins(item) for item in status.set_aside],
    }


def status_text(status: OutboxStatus) -> str:
    """The status for a person."""
    counters = status.counters
    return "\n".join(
        (
            f"outbox {status.outbox_id} of device {status.owner.device}, bundle {status.owner.bundle_id[:12]}",
            f"  {counters.rows} rows up to line {status.position.line}, {counters.skipped} skipped, "
            f"{counters.samples} samples, {counters.cut} cut",
            f"  {counters.acknowledged} stored on the server, {counters.rejected} rejected, "
            f"{status.waiting_samples} waiting ({readable_bytes(status.waiting_bytes)})",
            f"  {counters.forward_passes} forward passes, {counters.uploaded_samples} samples uploaded, "
            f"{counters.resent_samples} sent again, {counters.cpu_s:.1f} CPU seconds",
            f"  {readable_bytes(counters.bytes_up)} up, {readable_bytes(counters.bytes_down)} down",
            *set_aside_lines(status.set_aside),
        )
    )


def set_aside_lines(items: list[SetAside]) -> list[str]:
    """What was set aside: totals by reason, then the first ones in full."""
    totals = Counter(item.code for item in items)
    lines = [f"  set aside, {code}: {count}" for code, count in sorted(totals.items())]
    shown = [f"    line {item.line}: {item.code}: {item.detail}" for item in items[:SET_ASIDE_SHOWN]]
    rest = len(items) - len(shown)
    return [*lines, *shown, *([f"    and {rest} more (--json lists them all)"] if rest else [])]
