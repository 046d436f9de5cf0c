"""`sf-server serve`: predictions for devices that compute the first layers themselves."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import torch
from msgspec import Meta

from sf_contract.bundle import Bundle
from sf_contract.command import ArgumentParser, print_json, say, usable_cores
from sf_contract.errors import UsageError
from sf_contract.manifest import Task
from sf_contract.settings import resolve_settings
from sf_server.link.notices import Notices
from sf_server.link.reception import Reception
from sf_server.link.router import Router
from sf_server.link.security import check_link, device_options, prepare_link
from sf_server.options import add_options
from sf_server.pieces import Pieces, open_pieces
from sf_server.results.trained import TrainedModel
from sf_server.serving.classifier import Classifier
from sf_server.serving.desk import Desk
from sf_server.serving.service import PredictionService
from sf_server.settings import DEFAULT_BIND, DEFAULT_CONNECTIONS, TrainSettings

_DESCRIPTION: Final = """\
Answer devices that ask which class their texts belong to: the device computes the first layers with its bundle, this server
the rest with the run's adapter. Texts stay on the devices; the rows that come are not stored.
Keys are those of the run: who may send samples to it may also ask. Ends with SIGTERM or Ctrl-C."""

_EPILOG: Final = """\
examples:
  sf-server serve --run runs/intents
  sf-server serve --run runs/intents --bind tcp://0.0.0.0:5556
  sf-edge predict --bundle bundle/ --server tcp://lab:5556 --server-key 5e1f... "wake me up at six"      on a device"""

OneOrMore = Annotated[int, Meta(ge=1, le=100_000)]


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every option of `sf-server serve`; the descriptions are the texts of `--help`."""

    run: Annotated[str, Meta(description="run folder of sf-server train, with its adapter")]
    model: Annotated[str | None, Meta(description="base model, if it has moved since training")] = None
    bind: Annotated[str, Meta(description="address on which devices are received")] = DEFAULT_BIND
    key: Annotated[str | None, Meta(description="this server's secret key; by default that of the run")] = None
    authorized: Annotated[
        str | None, Meta(description="folder with the public keys of devices; by default that of the run")
    ] = None
    insecure: Annotated[
        bool, Meta(description="receive in the clear on other addresses than this machine's own loopback")
    ] = False
    max_connections: Annotated[OneOrMore, Meta(description="connections at one time; who is silent goes first")] = (
        DEFAULT_CONNECTIONS
    )
    device_mb_per_s: Annotated[
        Annotated[float, Meta(gt=0, le=100_000)] | None,
        Meta(description="megabytes of rows per second that each device may send; by default as many as it can"),
    ] = None
    window_ms: Annotated[
        Annotated[float, Meta(ge=0, le=1_000)],
        Meta(description="milliseconds a request waits for those of other devices, to be computed together"),
    ] = 3.0
    batch_tokens: Annotated[OneOrMore, Meta(description="tokens computed together, at most")] = 4096
    threads: Annotated[
        Annotated[int, Meta(ge=0, le=4096)], Meta(description="processor threads; 0: all usable cores")
    ] = 0
    json: Annotated[
        bool, Meta(description="the address as JSON on standard output once devices are received; errors as JSON")
    ] = False


_METAVARS: Final = {
    "run": "DIR",
    "model": "ID|DIR|FILE",
    "bind": "ADDRESS",
    "key": "FILE",
    "authorized": "DIR",
    "device_mb_per_s": "MB",
    "window_ms": "MS",
}


def main_serve(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(prog="sf-server serve", description=_DESCRIPTION, epilog=_EPILOG)
    add_options(parser, ServeSettings, metavars=_METAVARS)
    flags = vars(parser.parse_args(arguments))
    settings = resolve_settings(ServeSettings, toml_path=flags.pop("config", None), flags=flags)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    torch.set_num_threads(settings.threads or usable_cores())
    pieces = open_pieces(Path(settings.run), model=settings.model, say=_say)
    bundles = pieces.bundles
    _check_task(bundles)
    reception = _reception(settings, pieces, bundles)
    classifier = Classifier(TrainedModel(pieces), bundles, device=pieces.device, max_tokens=settings.batch_tokens)
    with reception.open(settings.bind) as router:
        _service(settings, reception, router, bundles, classifier).serve(stop.is_set)
    _say("stopped")
    return 0


def _service(
    settings: ServeSettings, reception: Reception, router: Router, bundles: Sequence[Bundle], classifier: Classifier
) -> PredictionService:
    notices = Notices(_say)
    keys = reception.keys
    if keys is not None:
        keys.authorized.refresh(now_s=time.monotonic())
        _say(f"authorized devices: {keys.authorized.devices}, in {keys.authorized.folder}")
        _say(
            f"devices ask with: sf-edge predict {device_options(router.address, keys.secret, host=socket.gethostname())}"
        )
    _say(f"answering devices on {router.address}")
    if settings.json:
        print_json({"address": router.address, "pid": os.getpid()})
    return PredictionService(
        router=router,
        desk=Desk(
            bundles={bundle.bundle_id: bundle.manifest for bundle in bundles},
            clock=time.time,
            notices=notices,
            gate=reception.gate(notices),
        ),
        classifier=classifier,
        window_s=settings.window_ms / 1000,
        authorized=None if keys is None else keys.authorized,
        say=_say,
    )


def _reception(settings: ServeSettings, pieces: Pieces, bundles: Sequence[Bundle]) -> Reception:
    """As the run receives devices, at another address.

    Raises:
        UsageError: the link cannot be as asked for.
    """
    chosen: TrainSettings = msgspec.structs.replace(
        pieces.settings,
        run=settings.run,
        bind=settings.bind,
        key=settings.key,
        authorized=settings.authorized,
        insecure=settings.insecure,
        max_connections=settings.max_connections,
        device_mb_per_s=settings.device_mb_per_s,
    )
    check_link(chosen.link_choice())
    prepare_link(chosen.link_choice())
    return Reception(chosen, [bundle.manifest for bundle in bundles], say=_say)


def _check_task(bundles: Sequence[Bundle]) -> None:
    task = bundles[0].manifest.task.task
    if task is not Task.TEXT_CLASSIFICATION:
        raise UsageError(
            f"the run is for {task.value}, and only class predictions go through the split",
            cure="complete prompts on the server, with sf-server generate",
        )


def _say(text: str) -> None:
    say(f"sf-server serve: {text}")
