"""The state of a run as a table on a terminal, and as one line for logs. A door to rich."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sf_server.amounts import age, amount, byte_amount
from sf_server.seeing.state import CurvePoint, DeviceState, DeviceStatus, Phase, RunState

LINES_BESIDES_DEVICES: Final = 14
FEWEST_DEVICES: Final = 5
CURVE_WIDTH: Final = 60

_BARS: Final = "▁▂▃▄▅▆▇█"
_UNKNOWN: Final = "-"
_COLOURS: Final = {
    DeviceStatus.SENDING: "green",
    DeviceStatus.WAITING: "",
    DeviceStatus.PAUSED: "yellow",
    DeviceStatus.FINISHED: "dim",
    DeviceStatus.GONE: "red",
}
_MOST_INTERESTING_FIRST: Final = (
    DeviceStatus.GONE,
    DeviceStatus.PAUSED,
    DeviceStatus.SENDING,
    DeviceStatus.WAITING,
    DeviceStatus.FINISHED,
)


def run_table(state: RunState, *, height: int | None = None) -> RenderableType:
    """Everything that matters, for a terminal.

    Args:
        height: lines there are; those devices that nothing can be done about are left out first. None: no limit.
    """
    room = None if height is None else max(FEWEST_DEVICES, height - LINES_BESIDES_DEVICES)
    return Group(_facts(state), Text(""), _devices(state, room))


def one_line(state: RunState) -> str:
    """The state in one line."""
    progress, devices = state.progress, state.devices
    finished = sum(device.status is DeviceStatus.FINISHED for device in devices)
    parts = [
        _phase(state),
        f"step {progress.step:,}",
        "" if progress.loss is None else f"loss {progress.loss:.4f}",
        "" if progress.tokens_per_s is None else f"{progress.tokens_per_s:,.0f} tokens/s",
        f"{state.store.train_samples:,} samples stored",
        f"{finished} of {len(devices)} devices finished",
    ]
    return ", ".join(filter(None, parts))


def sparkline(values: Sequence[float], *, width: int = CURVE_WIDTH) -> str:
    """A curve of blocks, `width` at most; each is the mean of its part of the values."""
    if not values:
        return ""
    columns = min(width, len(values))
    edges = [column * len(values) // columns for column in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _facts(state: RunState) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    for name, text in _lines(state).items():
        grid.add_row(name, Text(text))
    return grid


def _lines(state: RunState) -> dict[str, str]:
    run, progress, store, saved = state.run, state.progress, state.store, state.savings
    cuts = ", ".join(str(bundle.cut) for bundle in state.run.bundles) or _UNKNOWN
    lines = {
        "run": f"{run.folder}, {run.base_model}, {run.task}, cut {cuts}",
        "phase": _phase(state) + ("" if run.address is None else f"; devices are received on {run.address}"),
        "progress": _progress(state),
        "loss": _loss(state.loss_curve, progress.loss),
    }
    if state.validations:
        newest = state.validations[-1]
        lines["held out"] = (
            f"accuracy {newest.accuracy:.1%} (always the commonest answer: {newest.floor:.1%}), loss {newest.loss:.4f} "
            f"on {newest.samples:,} samples after epoch {newest.epoch}"
        )
    lines["store"] = (
        f"{store.train_samples:,} samples to train on, {store.validation_samples:,} held out, "
        f"{byte_amount(store.used_bytes)} of {byte_amount(store.quota_bytes)}"
    )
    lifted = "" if state.queue.lifted is None else f", {state.queue.lifted:,} lifted"
    lines["waiting"] = f"{state.queue.untrained:,} samples not trained on yet{lifted}"
    about = "about " if saved.is_estimated else ""
    lines["spared"] = (
        f"devices computed {about}{amount(saved.spent_flops, 'FLOP')}; not needed: {amount(saved.forward_flops, 'FLOP')} "
        f"forward, {amount(saved.backward_flops, 'FLOP')} backward, {byte_amount(saved.upload_bytes)} of uploads"
    )
    return lines


def _phase(state: RunState) -> str:
    progress, epochs = state.progress, state.run.epochs
    match state.phase:
        case Phase.WAITING:
            return "waiting for samples"
        case Phase.TRAINING:
            return f"epoch {max(progress.epoch, 1)} of {epochs}"
        case Phase.STOPPED:
            return (
                f"stopped in epoch {progress.epoch} of {epochs}" if progress.epoch else "stopped before the first step"
            )
        case Phase.DONE:
            return f"done, {epochs} epochs"


def _progress(state: RunState) -> str:
    progress = state.progress
    parts = [f"step {progress.step:,}", f"{progress.samples_trained:,} samples, {progress.tokens_trained:,} tokens"]
    if progress.part_done is not None:
        parts.insert(0, f"{progress.part_done:.0%}")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s in the last minute")
    if progress.learning_rate is not None:
        parts.append(f"learning rate {progress.learning_rate:.3g}")
    if progress.skipped_steps:
        parts.append(f"{progress.skipped_steps:,} steps skipped")
    return ", ".join(parts)


def _loss(curve: Sequence[CurvePoint], last: float | None) -> str:
    if last is None:
        return _UNKNOWN
    return f"{last:.4f}  {sparkline([point.loss for point in curve])}"


def _devices(state: RunState, room: int | None) -> RenderableType:
    if not state.devices:
        return Text("no device has connected yet")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in _COLUMNS.items():
        table.add_column(heading, justify=justify, no_wrap=heading != "state")
    shown = _shown(state.devices, room)
    for device in shown:
        table.add_row(*_cells(device, state.taken_s))
    left_out = len(state.devices) - len(shown)
    return table if not left_out else Group(table, Text(f"and {left_out:,} more devices: sf-server devices lists them"))


def _shown(devices: Sequence[DeviceState], room: int | None) -> Sequence[DeviceState]:
    if room is None or len(devices) <= room:
        return devices
    ranked = sorted(devices, key=lambda device: (_MOST_INTERESTING_FIRST.index(device.status), device.name))
    return sorted(ranked[:room], key=lambda device: device.name)


_COLUMNS: Final[dict[str, Literal["left", "right"]]] = {
    "device": "left",
    "cut": "right",
    "state": "left",
    "samples": "right",
    "per s": "right",
    "in": "right",
    "out": "right",
    "rejected": "right",
    "skipped": "right",
    "last heard": "right",
}


def _cells(device: DeviceState, now_s: float) -> tuple[Text, ...]:
    texts = (
        device.name,
        _UNKNOWN if device.cut is None else str(device.cut),
        device.reason or device.status.value,
        f"{device.samples:,}",
        _UNKNOWN if device.samples_per_s is None else f"{device.samples_per_s:.1f}",
        byte_amount(device.bytes_in),
        byte_amount(device.bytes_out),
        f"{device.rejected:,}",
        f"{device.skipped:,}",
        f"{age(device.last_seen_s, now_s)} ago",
    )
    colour = _COLOURS[device.status]
    return tuple(Text(text, style=colour if column == 2 else "") for column, text in enumerate(texts))
