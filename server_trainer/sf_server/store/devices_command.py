"""`sf-server devices`: who has sent what."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from sf_contract.command import ArgumentParser, print_json
from sf_server.run_folder import RunFolder
from sf_server.store.store import Store
from sf_server.store.stored import DeviceSummary, is_held_back

DESCRIPTION: Final = (
    "List the devices of a run: samples, traffic, and when they were last heard. Works while the run does."
)
EPILOG: Final = """\
example:
  sf-server devices --run out/run

"in" and "out" are bytes of whole messages from and to the device; "repeats" are samples that came again because an
answer was lost, and were not stored again; "malformed" are messages that were none; "activity" is what holds the device
back, in its own words, and how long ago it said so. A device has one line per outbox."""

HEADINGS: Final = (
    "device",
    "outbox",
    "samples",
    "repeats",
    "rejected",
    "malformed",
    "skipped",
    "in",
    "out",
    "finished",
    "last heard",
    "activity",
)
_TEXT_COLUMNS: Final = frozenset({0, 1, 11})
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def main_devices(arguments: Sequence[str]) -> int:
    """Run `sf-server devices`."""
    parser = ArgumentParser(prog="sf-server devices", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON list on standard output")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    folder.record()
    with Store.open_read_only(folder.store_path) as store:
        summaries = store.device_summaries()
    if options.json:
        print_json([asdict(summary) for summary in summaries])
    else:
        print(device_table(summaries, now_s=time.time()))
    return 0


def device_table(summaries: Sequence[DeviceSummary], *, now_s: float) -> str:
    """The summaries as an aligned table."""
    if not summaries:
        return "no device has connected yet"
    rows = [HEADINGS, *(_cells(summary, now_s) for summary in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if column in _TEXT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _cells(summary: DeviceSummary, now_s: float) -> tuple[str, ...]:
    return (
        summary.device,
        summary.outbox[:8],
        str(summary.samples),
        str(summary.repeats),
        str(summary.rejected),
        str(summary.malformed),
        str(summary.skipped_rows),
        _amount(summary.bytes_in),
        _amount(summary.bytes_out),
        "yes" if summary.finished else "no",
        f"{_age_s(summary.last_seen_s, now_s)} s ago",
        f"{summary.activity} ({_age_s(summary.activity_s, now_s)} s ago)" if is_held_back(summary) else "",
    )


def _age_s(then_s: float, now_s: float) -> int:
    return max(0, round(now_s - then_s))


def _amount(nbytes: int) -> str:
    amount = float(nbytes)
    for unit in _UNITS[:-1]:
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} {_UNITS[-1]}"
