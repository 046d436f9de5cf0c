"""The command `sf-server`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sf_contract import SOFTWARE
from sf_contract.command import let_idle_threads_sleep, run_command
from sf_contract.errors import UsageError

Body = Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    return run_command("sf-server", _dispatch, argv)


@dataclass(frozen=True, slots=True)
class _Command:
    summary: str
    body: Body


def _train(arguments: Sequence[str]) -> int:
    from sf_server.supervision.train_command import main_train  # noqa: PLC0415

    return main_train(arguments)


def _dashboard(arguments: Sequence[str]) -> int:
    from sf_server.seeing.dashboard.command import main_dashboard  # noqa: PLC0415

    return main_dashboard(arguments)


def _devices(arguments: Sequence[str]) -> int:
    from sf_server.store.devices_command import main_devices  # noqa: PLC0415

    return main_devices(arguments)


def _forget(arguments: Sequence[str]) -> int:
    from sf_server.store.forget_command import main_forget  # noqa: PLC0415

    return main_forget(arguments)


def _status(arguments: Sequence[str]) -> int:
    from sf_server.seeing.status_command import main_status  # noqa: PLC0415

    return main_status(arguments)


def _evaluate(arguments: Sequence[str]) -> int:
    from sf_server.results.eval_command import main_eval  # noqa: PLC0415

    return main_eval(arguments)


def _keygen(arguments: Sequence[str]) -> int:
    from sf_server.link.keygen_command import main_keygen  # noqa: PLC0415

    return main_keygen(arguments)


def _merge(arguments: Sequence[str]) -> int:
    from sf_server.results.merge_command import main_merge  # noqa: PLC0415

    return main_merge(arguments)


def _predict(arguments: Sequence[str]) -> int:
    from sf_server.results.predict_command import main_predict  # noqa: PLC0415

    return main_predict(arguments)


def _generate(arguments: Sequence[str]) -> int:
    from sf_server.results.generate_command import main_generate  # noqa: PLC0415

    return main_generate(arguments)


def _serve(arguments: Sequence[str]) -> int:
    from sf_server.serving.serve_command import main_serve  # noqa: PLC0415

    return main_serve(arguments)


COMMANDS: Final[dict[str, _Command]] = {
    "train": _Command("receive samples from devices and train an adapter", _train),
    "status": _Command("show what a run is doing", _status),
    "devices": _Command("list the devices of a run and what they sent", _devices),
    "dashboard": _Command("a page about a run, in a browser on this machine", _dashboard),
    "forget": _Command("remove a device's samples from a run, and prove it", _forget),
    "eval": _Command("measure an adapter on labelled data", _evaluate),
    "predict": _Command("classify texts with the trained model", _predict),
    "generate": _Command("complete prompts with the trained model", _generate),
    "serve": _Command("answer devices that ask which class their texts belong to", _serve),
    "keygen": _Command("make a key for encrypted links that several runs share", _keygen),
    "merge": _Command("write the trained model as one ordinary model folder", _merge),
}

_HELP: Final = """\
usage: sf-server COMMAND [options]
       sf-server COMMAND --help

The server's side of SplitFrozen: devices run the first, frozen layers of a model on their own text and send the resulting
activations; the server trains LoRA on the remaining layers and never sees the text.

commands:
{commands}

options:
  -h, --help   this text
  --version    the version

example:
  sf-server train --bundle out/bundle --run out/run --expect-devices 4
"""


def _dispatch(arguments: Sequence[str]) -> int:
    first = arguments[0] if arguments else None
    if first in {"-h", "--help"}:
        print(_help_text(), end="")
        return 0
    if first == "--version":
        print(SOFTWARE)
        return 0
    command = COMMANDS.get(first or "")
    if command is None:
        raise _unknown(first)
    let_idle_threads_sleep()
    return command.body(arguments[1:])


def _help_text() -> str:
    width = max(map(len, COMMANDS))
    return _HELP.format(commands="\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items()))


def _unknown(name: str | None) -> UsageError:
    cure = f"give one of {', '.join(COMMANDS)}; sf-server --help describes them"
    if name is None:
        return UsageError("no command given", cure=cure)
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return UsageError(f"there is no command {name!r}{hint}", cure=cure)
