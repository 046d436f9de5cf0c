"""The ingest process: receives devices for one run folder until it is told to stop. Needs no torch.

Started by the supervisor as `python -m sf_server.ingest.process --run DIR`. SIGTERM ends it, and devices wait for its return;
SIGUSR1 says that training is complete: devices may finish, are told that no more is wanted, and then it ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sf_contract.command import ArgumentParser, run_command, say
from sf_contract.errors import AddressInUse
from sf_contract.frames import encode
from sf_contract.limits import MIB
from sf_server.bundles import open_run_bundles
from sf_server.ingest.ingest import Ingest
from sf_server.ingest.steps import Answer
from sf_server.link.authorized import AuthorizedKeys
from sf_server.link.notices import Notices
from sf_server.link.reception import Reception
from sf_server.link.router import Router
from sf_server.run_folder import IngestRecord, RunFolder, RunRecord
from sf_server.store.store import Store
from sf_server.supervision.parent import leave_with_parent

GROUP_BYTES: Final = 16 * MIB
GROUP_MESSAGES: Final = 1_000
"""What is made durable together, at most; more waits in the sockets."""

POLL_S: Final = 0.2
FLUSH_EVERY_S: Final = 5.0
LAST_ANSWERS_S: Final = 2.0
"""When training is complete, devices that have just sent their last sample get so long to finish."""


def main(argv: Sequence[str] | None = None) -> int:
    """Receive devices; ends with 0 after SIGTERM or SIGUSR1, or with the exit code of one of our errors."""
    return run_command("sf-server ingest", _ingest, argv)


@dataclass(frozen=True, slots=True)
class Orders:
    """What the process was told; set by signal handlers."""

    stop: threading.Event = field(default_factory=threading.Event)
    complete: threading.Event = field(default_factory=threading.Event)

    def obey_signals(self) -> None:
        """SIGTERM sets `stop`, SIGUSR1 sets `complete`."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        signal.signal(signal.SIGUSR1, lambda *_: self.complete.set())


@dataclass(frozen=True, slots=True)
class Service:
    """Socket and decisions, brought together.

    Attributes:
        authorized: who may come in, None when devices come in the clear.
        say: takes a line for the person watching.
    """

    router: Router
    ingest: Ingest
    authorized: AuthorizedKeys | None
    say: Callable[[str], None]

    def serve(self, orders: Orders) -> None:
        """Receive, make durable, answer, until told to stop; then once more what has already arrived."""
        self._serve_until(lambda: orders.stop.is_set() or orders.complete.is_set())
        if orders.complete.is_set():
            self.ingest.close()
            end_s = time.monotonic() + LAST_ANSWERS_S
            self._serve_until(lambda: orders.stop.is_set() or time.monotonic() >= end_s)
        self._serve_group(timeout_s=0)
        if orders.complete.is_set():
            self._send(self.ingest.farewells())
        self.ingest.flush()

    def _serve_until(self, is_over: Callable[[], bool]) -> None:
        flushed_s = time.monotonic()
        while not is_over():
            self._look_at_keys()
            self._serve_group(timeout_s=POLL_S)
            self._send(self.ingest.grants())
            if time.monotonic() - flushed_s >= FLUSH_EVERY_S:
                self.ingest.flush()
                flushed_s = time.monotonic()

    def _serve_group(self, *, timeout_s: float) -> None:
        arrivals = self.router.receive(timeout_s=timeout_s, max_bytes=GROUP_BYTES, max_messages=GROUP_MESSAGES)
        self._send(self.ingest.process(arrivals))
        self.ingest.forget(self.router.take_gone())

    def _look_at_keys(self) -> None:
        """When the folder of keys has changed, send those home whose keys were removed."""
        if self.authorized is None or not self.authorized.refresh(now_s=time.monotonic()):
            return
        self.say(f"authorized devices: {self.authorized.devices}, in {self.authorized.folder}")
        answers, keys = self.ingest.dismissals()
        self._send(answers)
        for key in keys:
            if not self.authorized.names(key):
                self.router.withdraw(key)

    def _send(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            frames = encode(answer.message)
            if self.router.send(answer.identity, frames):
                self.ingest.note_sent(answer.identity, sum(map(len, frames)))


def wildcard_or_former(bind: str, former: str | None) -> str:
    """The address to try first: devices know the port that a former ingest of this run was given for `*`."""
    host, _, port = bind.rpartition(":")
    if port in {"*", "0"} and former is not None and former.rpartition(":")[0] == host:
        return former
    return bind


def _ingest(arguments: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="sf-server ingest", description="Receive devices for a run; started by sf-server train."
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--json", action="store_true", help="errors as JSON")
    folder = RunFolder(parser.parse_args(arguments).run)
    leave_with_parent()
    orders = Orders()
    orders.obey_signals()
    record = folder.record()
    settings = record.settings
    bundles = open_run_bundles(settings, record.bundle_ids)
    manifests = {bundle.bundle_id: bundle.manifest for bundle in bundles}
    reception = Reception(settings, list(manifests.values()), say=_say)
    with (
        Store.open(folder.store_path, max_bytes=settings.max_store_bytes) as store,
        _bound(folder, record, reception) as router,
    ):
        ingest = Ingest(
            store=store,
            bundles=manifests,
            credit_bytes=settings.credit_bytes,
            clock=time.time,
            say=_say,
            gate=reception.gate(Notices(_say)),
        )
        authorized = None if reception.keys is None else reception.keys.authorized
        if authorized is not None:
            authorized.refresh(now_s=time.monotonic())
        folder.announce_ingest(IngestRecord(address=router.address, pid=os.getpid()))
        reception.announce(router.address)
        _say(f"receiving devices on {router.address}")
        Service(router=router, ingest=ingest, authorized=authorized, say=_say).serve(orders)
    return 0


def _say(text: str) -> None:
    say(f"sf-server ingest: {text}")


def _bound(folder: RunFolder, record: RunRecord, reception: Reception) -> Router:
    bind = record.settings.bind
    former = folder.ingest_record()
    first = wildcard_or_former(bind, None if former is None else former.address)
    try:
        return reception.open(first)
    except AddressInUse:
        if first == bind:
            raise
        return reception.open(bind)


if __name__ == "__main__":
    sys.exit(main())
