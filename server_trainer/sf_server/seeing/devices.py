"""What each device of a run is doing, from what the store knows of its outboxes. Pure, but for a short memory of the past."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final

from sf_server.seeing.state import DeviceState, DeviceStatus
from sf_server.store.stored import DeviceSummary, is_held_back

GONE_AFTER_S: Final = 30.0
"""Devices say something every 5 s at least, and ingest writes that down within 5 s more."""

RATE_SPAN_S: Final = 15.0
MIN_SPAN_S: Final = 2.0
"""Rates are not told before a device was watched for so long."""


class DeviceHistory:
    """How many samples each device had in the last seconds."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def rate(self, device: str, samples: int, *, now_s: float) -> float | None:
        """Samples per second lately, from this look and those before; None when they do not reach back far enough."""
        seen = self._seen.setdefault(device, deque())
        if seen and samples < seen[-1][1]:
            seen.clear()
        seen.append((now_s, samples))
        while len(seen) > 2 and now_s - seen[1][0] >= RATE_SPAN_S:
            seen.popleft()
        began_s, before = seen[0]
        return (samples - before) / (now_s - began_s) if now_s - began_s >= MIN_SPAN_S else None

    def keep_only(self, devices: Iterable[str]) -> None:
        """Forget all others."""
        kept = set(devices)
        self._seen = {device: seen for device, seen in self._seen.items() if device in kept}


def device_states(
    summaries: Sequence[DeviceSummary], *, cuts: Mapping[str, int], history: DeviceHistory, now_s: float
) -> tuple[DeviceState, ...]:
    """One state for each device, by name.

    Args:
        summaries: all outboxes, sorted by device, the one used last at the end of each device.
        cuts: cut by bundle id.
    """
    states = tuple(
        _device_state(list(outboxes), cuts=cuts, history=history, now_s=now_s)
        for _, outboxes in groupby(summaries, key=lambda summary: summary.device)
    )
    history.keep_only(state.name for state in states)
    return states


def _device_state(
    outboxes: Sequence[DeviceSummary], *, cuts: Mapping[str, int], history: DeviceHistory, now_s: float
) -> DeviceState:
    latest = outboxes[-1]
    samples = sum(outbox.samples for outbox in outboxes)
    rate = history.rate(latest.device, samples, now_s=now_s)
    status = device_status(latest, rate=rate, now_s=now_s)
    return DeviceState(
        name=latest.device,
        cut=cuts.get(latest.bundle_id),
        status=status,
        reason=latest.activity if status is DeviceStatus.PAUSED else "",
        samples=samples,
        samples_per_s=rate,
        bytes_in=sum(outbox.bytes_in for outbox in outboxes),
        bytes_out=sum(outbox.bytes_out for outbox in outboxes),
        last_seen_s=latest.last_seen_s,
        repeats=sum(outbox.repeats for outbox in outboxes),
        rejected=sum(outbox.rejected for outbox in outboxes),
        skipped=sum(outbox.skipped_rows for outbox in outboxes),
        malformed=sum(outbox.malformed for outbox in outboxes),
        outboxes=len(outboxes),
    )


def device_status(latest: DeviceSummary, *, rate: float | None, now_s: float) -> DeviceStatus:
    """What a device is doing; `latest` is the outbox it used last, `rate` its samples per second, None when unknown."""
    if latest.finished:
        return DeviceStatus.FINISHED
    if now_s - latest.last_seen_s > GONE_AFTER_S:
        return DeviceStatus.GONE
    if is_held_back(latest):
        return DeviceStatus.PAUSED
    return DeviceStatus.WAITING if rate == 0 else DeviceStatus.SENDING
