"""`sf-server train`: from the command line to a run folder and its two processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from sf_contract.command import ArgumentParser, say
from sf_contract.errors import UsageError
from sf_contract.manifest import Task
from sf_contract.settings import read_toml, resolve_settings
from sf_server.bundles import first_lora_layer, open_bundles
from sf_server.link.security import check_link, prepare_link
from sf_server.options import add_options
from sf_server.run_folder import RunFolder
from sf_server.scale.place import check_scale, processes_of_node
from sf_server.scale.quiet import keep_libraries_quiet
from sf_server.seeing.dashboard.address import WebAddresses, web_addresses
from sf_server.seeing.tensorboard import check_tensorboard
from sf_server.settings import TrainSettings, check_loop, check_train_settings, differences, with_absolute_paths
from sf_server.store.store import Store
from sf_server.supervision.supervisor import dashboard_command, ingest_command, supervise, trainer_command
from sf_server.training.memory import memory_cure

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
  weak and strong devices, each with its own cut of one model:
    sf-server train --bundle out/cut2 --bundle out/cut8 --run out/run --expect-devices 4
  with a page about the run on http://127.0.0.1:8765/:
    sf-server train --bundle out/bundle --run out/run --expect-devices 4 --dashboard 127.0.0.1:8765
  devices that send little, or unequal amounts: do not wait for full windows, and let each device count the same:
    sf-server train --bundle out/bundle --run out/run --expect-devices 4 --step-deadline 60 --balance device
  four GPUs of one machine share every batch:
    sf-server train --bundle out/bundle --run out/run --expect-devices 4 --ranks 4
  go on after an interruption, without the device that broke:
    sf-server train --run out/run --resume --expect-devices 3
  go on after memory ran out:
    sf-server train --run out/run --resume --batch-tokens 1024

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
    "retention_days": "DAYS",
    "credit_bytes": "BYTES",
    "checkpoint_every_s": "SECONDS",
    "step_deadline": "SECONDS",
    "dashboard": "HOST:PORT",
    "metrics_address": "HOST:PORT",
    "rendezvous": "HOST:PORT",
    "rank_timeout_s": "SECONDS",
}
_HEADINGS: Final = {
    "expect_devices": "when the data is complete (one of them is needed)",
    "bind": "receiving and keeping samples",
    "epochs": "batches and their order",
    "learning_rate": "optimizer",
    "lora_rank": "LoRA",
    "device": "how this machine computes",
    "checkpoint_every_s": "checkpoints, validation and result",
    "dashboard": "seeing what it does",
    "ranks": "several processes or machines",
    "json": "form",
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
    bundles = open_bundles(settings.bundle_paths)
    first_lora_layer(settings, bundles)
    check_balance(settings, bundles[0].manifest.task.task)
    bundle_ids = [bundle.bundle_id for bundle in bundles]
    folder = RunFolder(Path(settings.run))
    seen_on = _seen_on(settings)
    if settings.tensorboard:
        check_tensorboard()
    with folder.lock(wait_s=LOCK_WAIT_S) as lock:
        seen_on.check_free()
        prepare_link(settings.link_choice())
        if settings.resume:
            changed = differences(folder.settings(), settings, apart_from=_ONCE)
            folder.resume(settings, bundle_ids=bundle_ids)
            if changed:
                _say(f"with other settings than before: {', '.join(changed)}")
        else:
            folder.create(settings, bundle_ids=bundle_ids)
        Store.open(folder.store_path, max_bytes=settings.max_store_bytes).close()
        keep_libraries_quiet()
        return supervise(
            ingest=ingest_command(folder.path, as_json=settings.json),
            trainer=trainer_command(folder.path, as_json=settings.json, processes=processes_of_node(settings)),
            onlookers={"dashboard": dashboard_command(folder.path, as_json=settings.json)} if seen_on.any else {},
            memory_cure=memory_cure(settings),
            lock=lock,
            say=_say,
        )


def check_balance(settings: TrainSettings, task: Task) -> None:
    """Classes can be balanced only where there are some.

    Raises:
        UsageError: there are none.
    """
    if settings.balance == "class" and task is not Task.TEXT_CLASSIFICATION:
        raise UsageError(
            f"--balance class needs classes, and the bundle's task is {task.value}",
            cure="use --balance device, or leave it out",
        )


def _seen_on(settings: TrainSettings) -> WebAddresses:
    return web_addresses(
        dashboard=settings.dashboard, metrics=settings.metrics_address, without_login=settings.open_without_login
    )


def read_settings(arguments: Sequence[str]) -> TrainSettings:
    """Settings from flags, `--config` and, when a run is resumed, from the run.

    Raises:
        UsageError: they are unknown, out of range, missing or contradict one another; or there is no run to resume.
    """
    parser = ArgumentParser(prog="sf-server train", description=DESCRIPTION, epilog=EPILOG)
    add_options(parser, TrainSettings, metavars=_METAVARS, headings=_HEADINGS)
    flags: dict[str, Any] = vars(parser.parse_args(arguments))
    config: Path | None = flags.pop("config", None)
    given = {**({} if config is None else read_toml(config)), **flags}
    if given.get("resume") is True and isinstance(given.get("run"), str):
        former = _settings_of_run(RunFolder(Path(given["run"])), given)
        settings = resolve_settings(TrainSettings, toml_path=config, flags={**former, **flags})
        check_loop(settings)
        check_scale(settings)
        check_link(settings.link_choice())
        return settings
    settings = resolve_settings(TrainSettings, toml_path=config, flags=flags)
    check_train_settings(settings)
    check_scale(settings)
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
