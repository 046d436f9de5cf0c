"""`sf-server devices`: who has sent what."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from sf_contract.command import ArgumentParser, print_json
from sf_server.amounts import age, byte_amount
from sf_server.run_folder import RunFolder
from sf_server.seeing.run_info import run_info
from sf_server.store.store import Store
from sf_server.store.stored import DeviceSummary, is_held_back

DESCRIPTION: Final = (
    "List the devices of a run: samples, traffic, and when they were last heard. Works while the run does."
)
EPILOG: Final = """\
example:
  sf-server devices --run out/run

"cut" is the number of layers that the device runs; "in" and "out" are bytes of whole messages from and to the device;
"repeats" are samples that came again because an answer was lost, and were not stored again; "malformed" are messages that
were none; "activity" is what holds the device back, in its own words, and how long ago it said so. A device has one line per
outbox. What sf-server forget removed is not listed; the names of devices that were forgotten, and may not come in again,
are. sf-server status --watch shows rates."""

HEADINGS: Final = (
    "device",
    "cut",
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
_TEXT_COLUMNS: Final = frozenset({0, 2, 12})


def main_devices(arguments: Sequence[str]) -> int:
    """Run `sf-server devices`."""
    parser = ArgumentParser(prog="sf-server devices", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON list on standard output")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run)
    info = run_info(folder.path, folder.record(), address=None)
    cuts = {bundle.bundle_id: bundle.cut for bundle in info.bundles}
    with Store.open_read_only(folder.store_path) as store:
        summaries, forgotten = store.device_summaries(), sorted(store.removals().banned)
    if options.json:
        print_json([{**asdict(summary), "cut": cuts.get(summary.bundle_id)} for summary in summaries])
        return 0
    print(device_table(summaries, cuts=cuts, now_s=time.time()))
    if forgotten:
        print(f"forgotten, and not let in any more: {', '.join(forgotten)}")
    return 0


def device_table(summaries: Sequence[DeviceSummary], *, cuts: Mapping[str, int], now_s: float) -> str:
    """The summaries as an aligned table; `cuts` by bundle id."""
    if not summaries:
        return "no device has connected yet"
    rows = [HEADINGS, *(_cells(summary, cuts.get(summary.bundle_id), now_s) for summary in summaries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if column in _TEXT_COLUMNS else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _cells(summary: DeviceSummary, cut: int | None, now_s: float) -> tuple[str, ...]:
    return (
        summary.device,
        "-" if cut is None else str(cut),
        summary.outbox[:8],
        str(summary.samples),
        str(summary.repeats),
        str(summary.rejected),
        str(summary.malformed),
        str(summary.skipped_rows),
        byte_amount(summary.bytes_in),
        byte_amount(summary.bytes_out),
        "yes" if summary.finished else "no",
        f"{age(summary.last_seen_s, now_s)} ago",
        f"{summary.activity} ({age(summary.activity_s, now_s)} ago)" if is_held_back(summary) else "",
    )
