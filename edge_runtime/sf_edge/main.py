"""The `sf-edge` command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sf_contract import SOFTWARE
from sf_contract.command import ArgumentParser, print_json, run_command
from sf_contract.errors import UsageError

_DESCRIPTION = """\
Run a model's frozen first layers on this device and send the activations to the server, each sample once.
The text itself stays here, but activations are no encryption: whoever reads them can recover much of it.
What was computed waits in an outbox on the disk until the server has confirmed it, so a lost connection or a power cut
costs nothing: the same command resumes."""

_EXAMPLES = """\
examples:
  sf-edge verify bundle/                                    does this machine compute what the bundle says?
  sf-edge verify bundle/ --trust team.key.pub               and did somebody I trust make it?
  sf-edge run --bundle bundle/ --server tcp://127.0.0.1:5555 --data private.jsonl
  sf-edge run --config edge.toml --holdout 0.1              settings from a file, flags win
  sf-edge status ~/.local/state/splitfrozen/pi-3/1f0c...    what still waits, what was rejected and why

exit codes: 0 done, 2 usage, 12 data, 13 bundle, 14 mismatch, 16 no server, 17 refused, 19 disk full, 20 already running,
22 outbox unusable, 24 self-test failed, 25 bundle not trusted, 130 and 143 stopped by SIGINT and SIGTERM"""

_RUN_DESCRIPTION = """\
Read a data file, compute the activations of every row and send them until the server has confirmed all of them."""

_RUN_EXAMPLES = """\
data: JSON Lines or CSV with the columns of the bundle's template, for classification also "label":
  {"text": "turn the lights off", "label": "lights"}

examples:
  sf-edge run --bundle bundle/ --server tcp://127.0.0.1:5555 --data private.jsonl --holdout 0.1
  sf-edge run --bundle bundle/ --server ipc:///run/sf.sock --data notes.csv --watch --device kitchen

A row that cannot be used is reported with its line number and skipped. Stop with Ctrl-C; the same command resumes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sf-edge`; returns the exit code."""
    return run_command("sf-edge", _dispatch, argv)


def _dispatch(argv: Sequence[str]) -> int:
    arguments = vars(_parser().parse_args(argv))
    match arguments.pop("command", None):
        case "run":
            return _run(arguments)
        case "verify":
            return _verify(arguments)
        case "status":
            return _status(Path(arguments["outbox"]), as_json=arguments.get("json", False))
        case _:
            raise UsageError("no command given", cure="sf-edge --help lists the commands")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-edge", description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"sf-edge ({SOFTWARE})")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=ArgumentParser)
    _add_run_options(
        commands.add_parser(
            "run", help="compute and send every row of a file", description=_RUN_DESCRIPTION, epilog=_RUN_EXAMPLES
        )
    )
    verify = commands.add_parser(
        "verify",
        help="check a bundle on this machine",
        description="Check every file of a bundle against its manifest and run its self-test on this machine.",
    )
    verify.add_argument("bundle", metavar="BUNDLE", help="bundle folder")
    verify.add_argument("--trust", metavar="FILE|DIR", help="public keys (.pub) whose bundles are accepted")
    verify.add_argument(
        "--id", metavar="ID", help="the one bundle id that is accepted, as the bundle's maker gave it to you"
    )
    status = commands.add_parser(
        "status",
        help="show what an outbox holds",
        description="Show what waits in an outbox, its totals, and what was set aside and why. Safe while sf-edge runs.",
    )
    status.add_argument("outbox", metavar="OUTBOX", help="outbox folder")
    for command in (verify, status):
        command.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--bundle", metavar="DIR", help="bundle folder that sf-export wrote (required)")
    add("--server", metavar="ADDRESS", help="tcp://HOST:PORT or ipc://PATH (required)")
    add("--data", metavar="FILE", help=".jsonl, .ndjson, .json or .csv file (required)")
    add("--device", metavar="NAME", help="this device's name on the server (default: the host name)")
    add("--role", help="what the samples are for: train (default) or validation")
    add(
        "--holdout",
        type=float,
        metavar="FRACTION",
        help="send this part of the texts for validation, 0 to 0.9 (default 0)",
    )
    add("--outbox", metavar="DIR", help="outbox folder (default: ~/.local/state/splitfrozen/DEVICE/BUNDLE)")
    add("--watch", action="store_true", help="do not end: wait for lines appended to the file")
    add("--threads", type=int, metavar="N", help="processor threads for the front end (default 1)")
    add(
        "--max-outbox-bytes",
        type=int,
        metavar="N",
        help="reading waits while the outbox is this full (default 268435456)",
    )
    add("--max-tokens", type=int, metavar="N", help="cut longer texts (default and most: the bundle's)")
    add("--give-up-after-s", type=float, metavar="S", help="end if no server ever answers; 0 means never (default 60)")
    add(
        "--trust", metavar="FILE|DIR", help="public keys (.pub) whose bundles are accepted (default: unsigned ones too)"
    )
    add("--insecure", action="store_true", help="allow a network link although it is not encrypted")
    add("--config", metavar="FILE", help="TOML file with these settings; flags win")
    add("--json", action="store_true", help="print the summary as JSON on standard output")


def _run(flags: dict[str, object]) -> int:
    from sf_contract.settings import resolve_settings  # noqa: PLC0415  (heavy imports stay out of --help)
    from sf_edge.run import run  # noqa: PLC0415
    from sf_edge.settings import RunSettings  # noqa: PLC0415

    config = flags.pop("config", None)
    return run(resolve_settings(RunSettings, toml_path=None if config is None else Path(str(config)), flags=flags))


def _verify(given: dict[str, Any]) -> int:
    from sf_contract.signing import read_trust_list  # noqa: PLC0415
    from sf_edge.verify import verification_json, verification_text, verify_bundle  # noqa: PLC0415

    trust = read_trust_list(Path(given["trust"]).expanduser()) if "trust" in given else None
    found = verify_bundle(Path(given["bundle"]).expanduser(), trust=trust, wanted_id=given.get("id"))
    if given.get("json", False):
        print_json(verification_json(found))
    else:
        print(verification_text(found))
    return 0


def _status(folder: Path, *, as_json: bool) -> int:
    from sf_edge.outbox import read_outbox_status  # noqa: PLC0415
    from sf_edge.status import status_json, status_text  # noqa: PLC0415

    status = read_outbox_status(folder)
    if as_json:
        print_json(status_json(status))
    else:
        print(status_text(status))
    return 0
