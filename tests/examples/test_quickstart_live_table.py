from __future__ import annotations

import io

import pytest
from live_table import DeviceRow, LiveTable, ServerRow, Snapshot, count, one_line, size, table_lines

SNAPSHOT = Snapshot(
    elapsed_s=12.4,
    devices=(
        DeviceRow(
            name="phone-1", labels=("a", "b"), state="done", computed=300, acknowledged=300, bytes_up=2_000_000, bytes_down=900
        ),
        DeviceRow(name="phone-2", labels=("c", "d"), state="starting"),
    ),
    server=ServerRow(state="training", epochs=3, stored=1200, epoch=2, step=17, loss=0.51234, held_out_accuracy=0.95),
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_table_has_one_line_per_device_and_one_for_the_server() -> None:
    assert table_lines(SNAPSHOT) == [
        "device   holds only  state     computed  acked      up    down",
        "phone-1  a, b        done           300    300  2.0 MB  0.9 kB",
        "phone-2  c, d        starting         -      -       -       -",
        "",
        "server training: 1,200 samples stored, epoch 2/3, step 17, loss 0.512, held-out accuracy 95.0%",
    ]


def test_a_log_gets_one_line_every_few_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    table = LiveTable(stream, lambda: SNAPSHOT, clock=clock)
    for clock.now_s in (0.0, 1.0, 4.9, 5.0, 6.0):
        table.update()
    assert stream.getvalue() == 2 * (one_line(SNAPSHOT) + "\n")
    assert one_line(SNAPSHOT).startswith("   12 s | devices done 1/2 | server training: 1,200")


def test_on_a_terminal_the_former_table_is_erased_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    table = LiveTable(stream, lambda: SNAPSHOT, clock=Clock())
    table.show()
    first = stream.getvalue()
    table.show()
    assert stream.getvalue() == f"{first}\x1b[5F\x1b[J{first}"
    assert max(map(len, first.splitlines())) == 39


def test_a_finished_table_is_never_erased() -> None:
    stream = Terminal()
    table = LiveTable(stream, lambda: SNAPSHOT, clock=Clock())
    table.finish()
    first = stream.getvalue()
    table.show()
    assert stream.getvalue() == first + first


def test_what_is_not_known_is_a_dash() -> None:
    assert (count(None), count(1234), size(None), size(1500), size(2_500_000)) == (
        "-",
        "1,234",
        "-",
        "1.5 kB",
        "2.5 MB",
    )
