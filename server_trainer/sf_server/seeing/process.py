"""The process behind `--dashboard` and `--metrics-address`: it only reads, and a run goes on without it.

Started by the supervisor as `python -m sf_server.seeing.process --run DIR`. SIGTERM ends it; open pages hear that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sf_contract.command import ArgumentParser, run_command, say
from sf_server.run_folder import RunFolder
from sf_server.seeing.dashboard.address import web_addresses
from sf_server.seeing.dashboard.command import serve_run
from sf_server.supervision.parent import leave_with_parent


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a run's pages as its settings say; ends with the exit code of one of our errors, or by SIGTERM."""
    return run_command("sf-server dashboard", _serve, argv)


def _serve(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(prog="sf-server dashboard", description="Serve a run; started by sf-server train.")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--json", action="store_true", default=False, help="errors as JSON")
    folder = RunFolder(parser.parse_args(arguments).run)
    leave_with_parent()
    settings = folder.settings()
    addresses = web_addresses(
        dashboard=settings.dashboard, metrics=settings.metrics_address, without_login=settings.open_without_login
    )
    serve_run(folder.path, addresses, say=_say, run_ends=True)
    return 0


def _say(text: str) -> None:
    say(f"sf-server dashboard: {text}")


if __name__ == "__main__":
    sys.exit(main())
