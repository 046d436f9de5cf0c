"""The `sf-edge` command line."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sf_contract import SOFTWARE
from sf_contract.command import ArgumentParser, print_json, run_command
from sf_contract.errors import UsageError
from sf_edge.bench import options as bench_options
from sf_edge.doctor import options as doctor_options
from sf_edge.predict import options as predict_options

_DESCRIPTION = """\
Run a model's frozen first layers on this device and send the activations to the server, each sample once.
The text itself stays here, but activations are no encryption: whoever reads them can recover much of it.
What was computed waits in an outbox on the disk until the server has confirmed it, so a lost connection or a power cut
costs nothing: the same command resumes."""

_EXAMPLES = """\
examples:
  sf-edge verify bundle/                                    does this machine compute what the bundle says?
  sf-edge verify bundle/ --trust team.key.pub               and did somebody I trust make it?
  sf-edge bench bundle/ --tune                              how fast is it here, and with how many threads?
  sf-edge run --bundle bundle/ --server tcp://127.0.0.1:5555 --data private.jsonl
  sf-edge predict --config edge.toml "a text"               ask sf-server serve which class it belongs to
  sf-edge doctor --config edge.toml                         what is wrong here, or on the way to the server?
  sf-edge keygen                                            a key for encrypted links to servers
  sf-edge run --config edge.toml --holdout 0.1              settings from a file, flags win
  sf-edge status ~/.local/state/splitfrozen/pi-3/1f0c...    what still waits, what was rejected and why

exit codes: 0 done, 2 usage, 12 data, 13 bundle, 14 mismatch, 16 no server, 17 refused, 19 disk full, 20 already running,
22 outbox unusable, 24 self-test failed, 25 bundle not trusted, 26 this device's key not authorized, 27 wrong server key,
130 and 143 stopped by SIGINT and SIGTERM"""

_RUN_DESCRIPTION = """\
Read texts from a file, a folder or standard input, compute the activations of every row, and send them until the server
has confirmed all of them."""

_GOVERNOR_DESCRIPTION = """\
No row is computed while the battery is low, the device is hot or memory is short. Samples that are ready are still sent, and
the server and `sf-edge status` show why it pauses. Going on needs a clear improvement, and a pause lasts 30 s at least."""

_RUN_EXAMPLES = """\
data: JSON Lines or CSV with the columns of the bundle's template, for classification also "label":
  {"text": "turn the lights off", "label": "lights"}
or plain text, one text per line, where the template has a single column; for classification with --label.
A folder stands for the files in it (not its sub-folders, no hidden or temporary files), in the order of their names.
Every file is taken once, however often you start: its name and what was taken of it are kept in the outbox. Append to
files and add new ones; a file whose taken part was changed is refused.

examples:
  sf-edge run --bundle bundle/ --server tcp://127.0.0.1:5555 --data private.jsonl --holdout 0.1
  sf-edge run --bundle bundle/ --server ipc:///run/sf.sock --data notes.csv --watch --device kitchen
  sf-edge run --bundle bundle/ --server tcp://lab:5555 --server-key 5e1f... --data private.jsonl --device pi-3     encrypted
  sf-edge run --config edge.toml --data inbox/ --watch              new and growing files in a folder
  journalctl -f -o cat -u app | sf-edge run --config edge.toml --data - --format text --label normal
  sf-edge run --config edge.toml --only-charging --max-cpu 25%      a phone: at night on the charger, a quarter of a core
  sf-edge run --config edge.toml --cpus 0-1 --max-temperature 65    a board without a fan

A row that cannot be used is reported with its line number and skipped. Stop with Ctrl-C; the same command resumes."""


_DEFAULT_KEY_FILE = "~/.config/splitfrozen/device.key"

_KEYGEN_DESCRIPTION = """\
Make this device's key for encrypted links: a secret key that stays here, and a public key (.pub beside it) for the server.
Nothing that exists is overwritten."""

_KEYGEN_EXAMPLES = f"""\
examples:
  sf-edge keygen                                 writes {_DEFAULT_KEY_FILE} and {_DEFAULT_KEY_FILE}.pub
  scp {_DEFAULT_KEY_FILE}.pub SERVER:RUN/authorized/pi-3.pub      the file's name is the device's name
  sf-edge run --device pi-3 --server tcp://SERVER:5555 --server-key HEX ...         HEX: as sf-server train printed it"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `sf-edge`; returns the exit code."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy starts a thread per core, and nothing here uses them
    return run_command("sf-edge", _dispatch, argv)


def _dispatch(argv: Sequence[str]) -> int:
    arguments = vars(_parser().parse_args(argv))
    command = _COMMANDS.get(arguments.pop("command", ""))
    if command is None:
        raise UsageError("no command given", cure="sf-edge --help lists the commands")
    return command(arguments)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-edge", description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"sf-edge ({SOFTWARE})")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=ArgumentParser)
    _add_run_options(
        commands.add_parser(
            "run", help="compute and send every row of a file", description=_RUN_DESCRIPTION, epilog=_RUN_EXAMPLES
        ),
        needed=" (required)",
    )
    doctor = commands.add_parser(
        "doctor",
        help="find out what is wrong: this machine, the way to the server, the server's verdict",
        description=doctor_options.DESCRIPTION,
        epilog=doctor_options.EPILOG,
    )
    _add_run_options(doctor)
    doctor.add_argument("--timeout-s", type=float, metavar="S", help="patience with the network (default 5)")
    verify = commands.add_parser(
        "verify",
        help="check a bundle on this machine",
        description="Check every file of a bundle against its manifest and run its self-test on this machine.",
    )
    verify.add_argument(
        "bundle", metavar="BUNDLE", help="bundle folder, or one of several quantizations of a front end"
    )
    verify.add_argument("--trust", metavar="FILE|DIR", help="public keys (.pub) whose bundles are accepted")
    verify.add_argument(
        "--id", metavar="ID", help="the one bundle id that is accepted, as the bundle's maker gave it to you"
    )
    bench = commands.add_parser(
        "bench",
        help="measure a bundle on this machine",
        description=bench_options.DESCRIPTION,
        epilog=bench_options.EPILOG,
    )
    bench_options.add_bench_options(bench)
    predict_options.add_predict_options(
        commands.add_parser(
            "predict",
            help="ask a server which class a text belongs to",
            description=predict_options.DESCRIPTION,
            epilog=predict_options.EPILOG,
        )
    )
    status = commands.add_parser(
        "status",
        help="show what an outbox holds",
        description="Show what waits in an outbox, its totals, and what was set aside and why. Safe while sf-edge runs.",
    )
    status.add_argument("outbox", metavar="OUTBOX", help="outbox folder")
    keygen = commands.add_parser(
        "keygen",
        help="make this device's key for encrypted links",
        description=_KEYGEN_DESCRIPTION,
        epilog=_KEYGEN_EXAMPLES,
    )
    keygen.add_argument("--out", metavar="FILE", help=f"the secret key's file (default: {_DEFAULT_KEY_FILE})")
    slim = commands.add_parser(
        "slim",
        help="remove what no device loads from its packages",
        description="Show, and with --yes remove, files of this environment's packages that nothing on a device ever loads.",
    )
    slim.add_argument("--yes", action="store_true", help="remove them")
    for command in (verify, bench, status, keygen, slim):
        command.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    return parser


def _add_run_options(parser: argparse.ArgumentParser, *, needed: str = "") -> None:
    """The options of `run` and `doctor`; `needed` marks those that `run` must have."""
    add = parser.add_argument
    add(
        "--bundle",
        metavar="DIR",
        help=f"bundle folder, or a folder of several quantizations of one front end{needed}",
    )
    add("--server", metavar="ADDRESS", help=f"tcp://HOST:PORT or ipc://PATH{needed}")
    add(
        "--data",
        metavar="FILE|DIR|-",
        help=f".jsonl, .ndjson, .json, .csv or .txt file, a folder of them, or - for standard input{needed}",
    )
    add("--format", metavar="jsonl|csv|text", help="how rows are written (default: by the file's ending; - is jsonl)")
    add("--label", metavar="NAME", help="label of every row that has none; plain text for classification needs it")
    add("--device", metavar="NAME", help="this device's name on the server (default: the host name)")
    add("--role", help="what the samples are for: train (default) or validation")
    add(
        "--holdout",
        type=float,
        metavar="FRACTION",
        help="send this part of the texts for validation, 0 to 0.9 (default 0)",
    )
    add(
        "--outbox",
        metavar="DIR",
        help="folder of the outboxes, one per bundle (default: ~/.local/state/splitfrozen/DEVICE)",
    )
    add("--watch", action="store_true", help="do not end: wait for lines added to the file, or to files of the folder")
    add("--threads", type=int, metavar="N", help="processor threads for the front end (default: as tuned, else 1)")
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
    add("--key", metavar="FILE", help=f"this device's secret key, from sf-edge keygen (default: {_DEFAULT_KEY_FILE})")
    add(
        "--server-key",
        metavar="FILE|HEX",
        help="the server's public key, as sf-server train printed it; encrypts the link, needed unless the server is on "
        "this machine",
    )
    add("--insecure", action="store_true", help="send in the clear over a network, to a server that does not encrypt")
    _add_governor_options(parser.add_argument_group("kind to the device", _GOVERNOR_DESCRIPTION))
    add("--config", metavar="FILE", help="TOML file with these settings; flags win")
    add("--json", action="store_true", help="print the summary as JSON on standard output")


def _add_governor_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--min-battery", type=float, metavar="PERCENT",
        help="on battery, pause below this charge (default 20); goes on 5 above it, or on the charger",
    )  # fmt: skip
    add("--only-charging", action="store_true", help="pause whenever the machine runs on battery")
    add("--max-temperature", type=float, metavar="CELSIUS", help="pause above this heat (default 75), until 5 below it")
    add(
        "--max-memory-pressure", type=float, metavar="PERCENT",
        help="pause while programs wait for memory for more than this part of the time (default 10), until half of it",
    )  # fmt: skip
    add(
        "--max-cpu-pressure", type=float, metavar="PERCENT",
        help="the same for processors (default: never, as --nice gives way already)",
    )  # fmt: skip
    add("--max-cpu", metavar="SHARE", help="use at most this share of one core, as in 25%% or 0.25 (default: no limit)")
    add("--nice", type=int, metavar="N", help="give way to other programs, 0 (not) to 19 (most) (default 10)")
    add("--cpus", metavar="LIST", help="run on these processors only, as in 0-1 or 0,2 (default: any)")
    add("--no-governor", action="store_true", help="never pause; --max-cpu, --nice and --cpus still hold")


def _run(flags: dict[str, object]) -> int:
    from sf_contract.settings import resolve_settings  # noqa: PLC0415  (heavy imports stay out of --help)
    from sf_edge.run import run  # noqa: PLC0415
    from sf_edge.settings import RunSettings  # noqa: PLC0415

    config = flags.pop("config", None)
    return run(resolve_settings(RunSettings, toml_path=None if config is None else Path(str(config)), flags=flags))


def _doctor(flags: dict[str, object]) -> int:
    from sf_contract.settings import resolve_settings  # noqa: PLC0415
    from sf_edge.doctor.examine import run_doctor  # noqa: PLC0415
    from sf_edge.settings import DoctorSettings  # noqa: PLC0415

    config = flags.pop("config", None)
    path = None if config is None else Path(str(config))
    return run_doctor(resolve_settings(DoctorSettings, toml_path=path, flags=flags))


def _keygen(given: dict[str, Any]) -> int:
    from sf_contract.link_keys import make_link_key  # noqa: PLC0415
    from sf_edge.link.keygen import keygen_json, keygen_text  # noqa: PLC0415

    made = make_link_key(Path(given.get("out", _DEFAULT_KEY_FILE)).expanduser())
    if given.get("json", False):
        print_json(keygen_json(made))
    else:
        print(keygen_text(made))
    return 0


def _verify(given: dict[str, Any]) -> int:
    from sf_contract.signing import read_trust_list  # noqa: PLC0415
    from sf_edge.bundles.verify import verification_json, verification_text, verify_bundle  # noqa: PLC0415

    trust = read_trust_list(Path(given["trust"]).expanduser()) if "trust" in given else None
    found = verify_bundle(Path(given["bundle"]).expanduser(), trust=trust, wanted_id=given.get("id"))
    if given.get("json", False):
        print_json(verification_json(found))
    else:
        print(verification_text(found))
    return 0


def _bench(given: dict[str, Any]) -> int:
    from sf_edge.bench.command import bench_settings, run_bench  # noqa: PLC0415

    return run_bench(bench_settings(given))


def _predict(flags: dict[str, Any]) -> int:
    from sf_edge.predict.command import run_predict  # noqa: PLC0415

    return run_predict(flags)


def _slim(given: dict[str, Any]) -> int:
    from sf_edge.slim import slim_environment, unused_json, unused_text  # noqa: PLC0415

    is_removed = given.get("yes", False)
    unused = slim_environment(is_removed=is_removed)
    if given.get("json", False):
        print_json(unused_json(unused, is_removed=is_removed))
    else:
        print(unused_text(unused, is_removed=is_removed))
    return 0


def _status(given: dict[str, Any]) -> int:
    from sf_edge.governor.activity import read_activity  # noqa: PLC0415
    from sf_edge.outbox.place import find_outbox  # noqa: PLC0415
    from sf_edge.outbox.queue import read_outbox_status  # noqa: PLC0415
    from sf_edge.status import status_json, status_text  # noqa: PLC0415

    folder = find_outbox(Path(given["outbox"]).expanduser())
    status = read_outbox_status(folder)
    activity = read_activity(folder)
    if given.get("json", False):
        print_json(status_json(status, activity))
    else:
        print(status_text(status, activity, wall_s=time.time()))
    return 0


_COMMANDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "run": _run,
    "doctor": _doctor,
    "verify": _verify,
    "bench": _bench,
    "predict": _predict,
    "status": _status,
    "keygen": _keygen,
    "slim": _slim,
}
