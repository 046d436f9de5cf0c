"""The live table: what every process is doing, redrawn in place on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

LINE_EVERY_S: Final = 5.0
REDRAW_EVERY_S: Final = 0.5

_UP_AND_CLEAR: Final = "\x1b[{lines}F\x1b[J"


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device; None is what is not known yet."""

    name: str
    labels: tuple[str, ...]
    state: str
    computed: int | None = None
    acknowledged: int | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None

    @property
    def is_done(self) -> bool:
        """True when everything it holds is acknowledged."""
        return self.state == "done"


@dataclass(frozen=True, slots=True)
class ServerRow:
    """The server; None is what is not known yet."""

    state: str
    epochs: int
    stored: int | None = None
    epoch: int | None = None
    step: int | None = None
    loss: float | None = None
    held_out_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the table shows at one moment."""

    elapsed_s: float
    devices: tuple[DeviceRow, ...]
    server: ServerRow


class LiveTable:
    """Shows snapshots on a stream, no more often than is useful.

    Args:
        take: makes a snapshot; called only when one is shown.
        clock: seconds that only grow.
    """

    def __init__(
        self, stream: TextIO, take: Callable[[], Snapshot], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._take = take
        self._clock = clock
        self._in_place = stream.isatty()
        self._lines_drawn = 0
        self._shown_at: float | None = None

    def update(self) -> None:
        """Show a snapshot if it is time."""
        interval_s = REDRAW_EVERY_S if self._in_place else LINE_EVERY_S
        if self._shown_at is None or self._clock() - self._shown_at >= interval_s:
            self.show()

    def show(self) -> None:
        """Show a snapshot now."""
        snapshot = self._take()
        self._shown_at = self._clock()
        if self._in_place:
            width = shutil.get_terminal_size().columns
            self._redraw([line[: width - 1] for line in table_lines(snapshot)])
        else:
            print(one_line(snapshot), file=self._stream, flush=True)

    def finish(self) -> None:
        """Show a last snapshot; a later one is drawn below whatever is printed in between."""
        self.show()
        self._lines_drawn = 0

    def _redraw(self, lines: Sequence[str]) -> None:
        erase = _UP_AND_CLEAR.format(lines=self._lines_drawn) if self._lines_drawn else ""
        self._stream.write(erase + "".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._lines_drawn = len(lines)


def table_lines(snapshot: Snapshot) -> list[str]:
    """The snapshot as a table, one string per line."""
    header = ("device", "holds only", "state", "computed", "acked", "up", "down")
    rows = [header, *map(_device_cells, snapshot.devices)]
    return [*aligned(rows, left=3), "", _server_line(snapshot)]


def one_line(snapshot: Snapshot) -> str:
    """The snapshot in one line, for logs."""
    done = sum(device.is_done for device in snapshot.devices)
    return f"{snapshot.elapsed_s:5.0f} s | devices done {done}/{len(snapshot.devices)} | {_server_line(snapshot)}"


def aligned(rows: Sequence[tuple[str, ...]], *, left: int) -> list[str]:
    """Rows of cells as columns: the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths, left)).rstrip() for row in rows]


def count(value: int | None) -> str:
    """A count with thousands separators; a dash when it is not known."""
    return "-" if value is None else f"{value:,}"


def size(nbytes: int | None) -> str:
    """Bytes in the unit that reads best."""
    if nbytes is None:
        return "-"
    if nbytes < 1_000_000:
        return f"{nbytes / 1_000:.1f} kB"
    return f"{nbytes / 1_000_000:.1f} MB"


def _padded(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    cells = zip(row, widths, strict=True)
    return [text.ljust(width) if index < left else text.rjust(width) for index, (text, width) in enumerate(cells)]


def _device_cells(device: DeviceRow) -> tuple[str, ...]:
    return (
        device.name,
        ", ".join(device.labels),
        device.state,
        count(device.computed),
        count(device.acknowledged),
        size(device.bytes_up),
        size(device.bytes_down),
    )


def _server_line(snapshot: Snapshot) -> str:
    server = snapshot.server
    epoch = "-" if server.epoch is None else str(server.epoch)
    loss = "-" if server.loss is None else f"{server.loss:.3f}"
    validated = "" if server.held_out_accuracy is None else f", held-out accuracy {server.held_out_accuracy:.1%}"
    return (
        f"server {server.state}: {count(server.stored)} samples stored, epoch {epoch}/{server.epochs}, "
        f"step {count(server.step)}, loss {loss}{validated}"
    )
