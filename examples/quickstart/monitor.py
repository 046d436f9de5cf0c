"""Where the live table's numbers come from: the processes themselves, the server's store and its metrics file."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from commands import devices_command
from live_table import DeviceRow, ServerRow, Snapshot
from out_folder import OutFolder
from processes import Child, find_program
from reports import EdgeReport, Metrics, StoredDevice, read_metrics, report_or, stored_devices

ASK_EVERY_S: Final = 3.0
ASK_LIMIT_S: Final = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class WatchedDevice:
    """A device of the demo: its name, the labels it holds, its process."""

    name: str
    labels: tuple[str, ...]
    child: Child


class StoreWatch:
    """Asks the server's store what each device has delivered, at most every few seconds.

    Args:
        ask: returns the devices as the store knows them.
        clock: seconds that only grow.
    """

    def __init__(self, ask: Callable[[], list[StoredDevice]], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._asked_at: float | None = None
        self._known: dict[str, StoredDevice] = {}

    def devices(self, *, fresh: bool) -> dict[str, StoredDevice]:
        """By name, as last known; `fresh` False means nothing can have changed any more."""
        is_due = self._asked_at is None or self._clock() - self._asked_at >= ASK_EVERY_S
        if fresh and is_due:
            self._known = {device.device: device for device in self._ask()}
            self._asked_at = self._clock()
        return self._known


def ask_server(out: OutFolder) -> list[StoredDevice]:
    """What `sf-server devices` says; nothing as long as there is no store."""
    program, *arguments = devices_command(out)
    try:
        answer = subprocess.run(
            [find_program(program), *arguments], capture_output=True, timeout=ASK_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return []
    return stored_devices(answer.stdout)


class Monitor:
    """Takes the snapshots that the live table shows."""

    def __init__(self, devices: Sequence[WatchedDevice], server: Child, *, out: OutFolder, epochs: int) -> None:
        self._devices = devices
        self._server = server
        self._metrics = out.metrics
        self._epochs = epochs
        self._store = StoreWatch(lambda: ask_server(out))
        self._started_at = time.monotonic()

    def take(self) -> Snapshot:
        """A snapshot of this moment."""
        sending = any(device.child.is_running for device in self._devices)
        stored = self._store.devices(fresh=sending)
        rows = tuple(_device_row(device, stored.get(device.name)) for device in self._devices)
        server = _server_row(
            read_metrics(self._metrics), rows, epochs=self._epochs, is_running=self._server.is_running, sending=sending
        )
        return Snapshot(elapsed_s=time.monotonic() - self._started_at, devices=rows, server=server)


def _device_row(device: WatchedDevice, stored: StoredDevice | None) -> DeviceRow:
    if not device.child.is_running:
        report = report_or(device.child.stdout.read_bytes(), EdgeReport())
        return DeviceRow(
            name=device.name,
            labels=device.labels,
            state="failed" if device.child.has_failed() else "done",
            computed=report.forward_passes,
            acknowledged=report.acknowledged,
            bytes_up=report.bytes_up,
            bytes_down=report.bytes_down,
        )
    if stored is None:
        return DeviceRow(name=device.name, labels=device.labels, state="starting")
    return DeviceRow(
        name=device.name,
        labels=device.labels,
        state="sending",
        acknowledged=stored.samples,
        bytes_up=stored.bytes_in,
        bytes_down=stored.bytes_out,
    )


def _server_row(
    metrics: Metrics, devices: Sequence[DeviceRow], *, epochs: int, is_running: bool, sending: bool
) -> ServerRow:
    if not is_running:
        state = "finished"
    elif sending:
        state = "receiving" if metrics.step.step is None else "receiving and training"
    else:
        state = "training"
    return ServerRow(
        state=state,
        epochs=epochs,
        stored=sum(device.acknowledged or 0 for device in devices),
        epoch=metrics.step.epoch,
        step=metrics.step.step,
        loss=metrics.step.loss,
        held_out_accuracy=metrics.validation.accuracy,
    )
