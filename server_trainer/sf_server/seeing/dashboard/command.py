"""`sf-server dashboard`: a page about a run that works or has worked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from sf_contract.command import ArgumentParser, print_json, say
from sf_server.seeing.dashboard.address import (
    DASHBOARD_OPTION,
    METRICS_OPTION,
    WebAddress,
    WebAddresses,
    bound_address,
    open_socket,
    web_address,
)
from sf_server.seeing.dashboard.serving import Opened, serve
from sf_server.seeing.reading import RunReader

DEFAULT_BIND: Final = "127.0.0.1:8765"
BIND_OPTION: Final = "--bind"

DESCRIPTION: Final = """\
Serve a page about a run: is it all right, how far is it, loss and accuracy, the devices, what was saved.

The run may be working, stopped or done; it is only read. The page follows it by itself and needs nothing from the internet."""

EPILOG: Final = """\
examples:
  sf-server dashboard --run out/run                        then open http://127.0.0.1:8765/
  sf-server dashboard --run out/run --bind 127.0.0.1:0     any free port; it is printed
  from another machine, through a tunnel:
    ssh -L 8765:127.0.0.1:8765 SERVER                      then open http://127.0.0.1:8765/ there

sf-server train --dashboard 127.0.0.1:8765 serves the same page as long as it trains. Besides / there are /state.json for
programs, /metrics for Prometheus and /healthz. There is no login, so it is served on loopback only, unless
--open-without-login is given."""


def main_dashboard(arguments: Sequence[str]) -> int:
    """Run `sf-server dashboard` until it is interrupted.

    Raises:
        UsageError: there is no run in the folder, or the address cannot be used.
        AddressInUse: another program listens there.
    """
    parser = ArgumentParser(prog="sf-server dashboard", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument(
        BIND_OPTION, default=DEFAULT_BIND, metavar="HOST:PORT", help=f"where to serve it (default: {DEFAULT_BIND})"
    )
    parser.add_argument(
        "--open-without-login",
        action="store_true",
        default=False,
        help="let other machines, and anybody on them, reach it: there is no login and no encryption",
    )
    parser.add_argument("--json", action="store_true", default=False, help="the address and errors as JSON")
    options = parser.parse_args(arguments)
    address = web_address(options.bind, option=BIND_OPTION, without_login=options.open_without_login)
    serve_run(
        options.run,
        WebAddresses(dashboard=address, metrics=None),
        say=_say,
        run_ends=False,
        option=BIND_OPTION,
        told=(lambda url: print_json({"url": url})) if options.json else None,
    )
    return 0


def serve_run(
    run: Path,
    addresses: WebAddresses,
    *,
    say: Callable[[str], None],
    run_ends: bool,
    option: str = DASHBOARD_OPTION,
    told: Callable[[str], None] | None = None,
) -> None:
    """Serve a run until SIGTERM or SIGINT.

    Args:
        run_ends: the run ends with this server.
        option: what the dashboard's address was given with, for the messages.
        told: gets the page's URL once a browser can open it.

    Raises:
        UsageError, StoreError: there is no run in this folder, it cannot be read, or an address cannot be used.
        AddressInUse: another program listens there.
    """
    reader = RunReader(run, clock=time.time)
    with ExitStack() as stack:
        dashboard = _opened(stack, addresses.dashboard, option)
        metrics = _opened(stack, addresses.metrics, METRICS_OPTION)
        if dashboard is not None:
            say(f"the page about this run is on {dashboard.address.url}")
            (told or (lambda url: None))(dashboard.address.url)
        if metrics is not None:
            say(f"metrics for Prometheus are on {metrics.address.url}metrics")
        serve(reader, dashboard=dashboard, metrics=metrics, run_ends=run_ends)


def _opened(stack: ExitStack, address: WebAddress | None, option: str) -> Opened | None:
    if address is None:
        return None
    listening = stack.enter_context(open_socket(address, option=option))
    return Opened(socket=listening, address=bound_address(listening, address))


def _say(text: str) -> None:
    say(f"sf-server dashboard: {text}")
