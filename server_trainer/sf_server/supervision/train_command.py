"""`sf-server train`: from the command line to a run folder and its two processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from sf_contract.bundle import open_bundle
from sf_contract.command import ArgumentParser, say
from sf_contract.settings import read_toml, resolve_settings
from sf_server.link.security import check_link, prepare_link
from sf_server.options import add_options
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings, check_train_settings, with_absolute_paths
from sf_server.store.store import Store
from sf_server.supervision.supervisor import ingest_command, supervise, trainer_command

LOCK_WAIT_S: Final = 5.0
"""Children of a supervisor that was killed need a moment to leave."""

DESCRIPTION: Final = """\
Receive samples from devices and train LoRA on the layers behind the cut, while they arrive and from the store.

Two processes share the run folder: one receives and stores, one trains. Either may crash and is started again. Stop with
Ctrl-C at any time; --resume goes on where the run was."""

EPILOG: Final = """\
examples:
  four devices on this machine or behind a tunnel:
    sf-server train --bundle out/bundle --run out/run --expect-devices 4
  devices anywhere, encrypted; the command prints the key that devices need, and out/run/authorized takes theirs:
    sf-server train --bundle out/bundle --run out/run --bind 'tcp://*:5555' --expect-samples 10000 --epochs 5
  go on after an interruption, without the device that broke:
    sf-server train --run out/run --resume --expect-devices 3

afterwards: sf-server eval, sf-server predict and sf-server merge use the folder given as --run."""

_METAVARS: Final = {
    "bundle": "DIR",
    "run": "DIR",
    "model": "ID|DIR|FILE",
    "bind": "ADDRESS",
    "key": "FILE",
    "authorized": "DIR",
    "device_mb_per_s": "MB",
    "max_store_bytes": "BYTES",
    "credit_bytes": "BYTES",
    "checkpoint_every_s": "SECONDS",
}
_ONCE: Final = frozenset({"run", "resume", "json"})
_EXPECTATIONS: Final = frozenset({"expect_devices", "expect_samples"})
_ENCRYPTION: Final = frozenset({"key", "authorized"})


def main_train(arguments: Sequence[str]) -> int:
    """Run `sf-server train`; its exit code.

    Raises:
        SplitFrozenError: any of them, before the two processes are started, or TrainingFailed afterwards.
    """
    settings = with_absolute_paths(read_settings(arguments))
    bundle = open_bundle(Path(settings.bundle))
    folder = RunFolder(Path(settings.run))
    with folder.lock(wait_s=LOCK_WAIT_S) as lock:
        prepare_link(settings.link_choice())
        if settings.resume:
            folder.resume(settings, bundle_id=bundle.bundle_id)
        else:
            folder.create(settings, bundle_id=bundle.bundle_id)
        Store.open(folder.store_path, max_bytes=settings.max_store_bytes).close()
        return supervise(
            ingest=ingest_command(folder.path, as_json=settings.json),
            trainer=trainer_command(folder.path, as_json=settings.json),
            lock=lock,
            say=_say,
        )


def read_settings(arguments: Sequence[str]) -> TrainSettings:
    """Settings from flags, `--config` and, when a run is resumed, from the run.

    Raises:
        UsageError: they are unknown, out of range, missing or contradict one another; or there is no run to resume.
    """
    parser = ArgumentParser(prog="sf-server train", description=DESCRIPTION, epilog=EPILOG)
    add_options(parser, TrainSettings, metavars=_METAVARS)
    flags: dict[str, Any] = vars(parser.parse_args(arguments))
    config: Path | None = flags.pop("config", None)
    given = {**({} if config is None else read_toml(config)), **flags}
    if given.get("resume") is True and isinstance(given.get("run"), str):
        former = _settings_of_run(RunFolder(Path(given["run"])), given)
        settings = resolve_settings(TrainSettings, toml_path=config, flags={**former, **flags})
        check_link(settings.link_choice())
        return settings
    settings = resolve_settings(TrainSettings, toml_path=config, flags=flags)
    check_train_settings(settings)
    return settings


def _settings_of_run(folder: RunFolder, given: dict[str, Any]) -> dict[str, Any]:
    """What the run was started with, without what is given now and what belongs to one start only."""
    hidden = {*given, *_ONCE, *(_EXPECTATIONS if _EXPECTATIONS & given.keys() else ())}
    if _ENCRYPTION & given.keys():
        hidden.add("insecure")
    if given.get("insecure") is True:
        hidden |= _ENCRYPTION
    return {name: value for name, value in msgspec.structs.asdict(folder.settings()).items() if name not in hidden}


def _say(text: str) -> None:
    say(f"sf-server: {text}")
