"""`sf-server status`: what a run is doing, once or again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console
from rich.live import Live

from sf_contract.command import ArgumentParser
from sf_server.seeing.reading import RunReader
from sf_server.seeing.state import Phase, RunState, to_json
from sf_server.seeing.table import one_line, run_table

REDRAW_EVERY_S: Final = 1.0
LINE_EVERY_S: Final = 5.0
LOG_WIDTH: Final = 160

DESCRIPTION: Final = """\
Show what a run is doing: phase, progress, loss, devices, store, and what the devices were spared. It reads the run folder and
disturbs nobody, so it works while the run does, after it, and as often as you like."""

EPILOG: Final = """\
examples:
  sf-server status --run out/run            once
  sf-server status --run out/run --watch    until the run is done; where there is no terminal, one line every 5 s
  sf-server status --run out/run --json     for another program; with --watch one document every second, one per line

Devices are: sending; waiting (connected, nothing new for 15 s); paused (they say why); finished; gone (silent for 30 s).
"per s" are samples per second of the last 15 s, known once a device was watched for 2 s, so with --watch only. FLOPs are
counted by rule: forward = 2 x weights below the cut x tokens, backward as much again; docs/operations.md has the formulas."""


def main_status(arguments: Sequence[str]) -> int:
    """Run `sf-server status`."""
    parser = ArgumentParser(prog="sf-server status", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--watch", action="store_true", default=False, help="again and again, until the run is done")
    parser.add_argument("--json", action="store_true", default=False, help="one JSON document per line")
    options = parser.parse_args(arguments)
    with RunReader(options.run, clock=time.time) as reader:
        if not options.watch:
            _show_once(reader.read(), as_json=options.json)
        elif options.json:
            watch(reader.read, _print_json, wait=lambda: time.sleep(REDRAW_EVERY_S))
        elif sys.stdout.isatty():
            _watch_on_terminal(reader.read)
        else:
            watch(reader.read, _print_line, wait=lambda: time.sleep(LINE_EVERY_S))
    return 0


def watch(read: Callable[[], RunState], show: Callable[[RunState], None], *, wait: Callable[[], None]) -> None:
    """Show the state again and again, until the run is done."""
    state = read()
    show(state)
    while state.phase is not Phase.DONE:
        wait()
        state = read()
        show(state)


def _show_once(state: RunState, *, as_json: bool, stream: TextIO | None = None) -> None:
    if as_json:
        _print_json(state)
        return
    console = Console(file=stream)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(run_table(state))


def _watch_on_terminal(read: Callable[[], RunState]) -> None:
    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        watch(
            read,
            lambda state: live.update(run_table(state, height=console.height), refresh=True),
            wait=lambda: time.sleep(REDRAW_EVERY_S),
        )


def _print_json(state: RunState) -> None:
    print(to_json(state).decode(), flush=True)


def _print_line(state: RunState) -> None:
    print(one_line(state), flush=True)
