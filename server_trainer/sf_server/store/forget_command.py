"""`sf-server forget`: a device's samples go, and it is proven that they are gone."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import AlreadyRunning, UsageError
from sf_server.amounts import byte_amount
from sf_server.run_folder import RunFolder
from sf_server.store.forget import Forgotten, Proof, forget_device
from sf_server.store.removal import Remover
from sf_server.store.retention import DAY_S
from sf_server.store.store import Store
from sf_server.training.lifted import forget_lifted

LOCK_WAIT_S: Final = 5.0

DESCRIPTION: Final = """\
Remove everything a device sent from a run: its samples, what was lifted from them, and its entries. The store is written
anew, and then every file of the run is searched for bytes of what was removed. Stop the run first (Ctrl-C, it saves);
--resume goes on without the device's samples."""

EPILOG: Final = """\
examples:
  sf-server forget pi-3 --run out/run
  sf-server forget pi-3 --run out/run --delete-adapters    and the weights that were trained on its samples
  sf-server forget pi-3 --run out/run --readmit            let it in again; what was removed does not come back
  sf-server forget --older-than-days 30 --run out/run      samples of all devices that came before that

Weights that were trained on the samples keep what they learned from them. They are listed; the cure is to delete them
(--delete-adapters) and to train anew from the samples that are left (sf-server train --run DIR --resume). Copies that were made
of them elsewhere, and backups, are yours to delete. The device's own outbox and data stay on the device."""


class _Options(msgspec.Struct, frozen=True):
    run: Path
    device: str | None
    readmit: bool
    delete_adapters: bool
    older_than_days: float | None
    as_json: bool


def main_forget(arguments: Sequence[str]) -> int:
    """Run `sf-server forget`.

    Raises:
        UsageError: no such device, or options that do not go together.
        AlreadyRunning: somebody works on the run.
        StoreError, DiskFull: as removing and searching find.
    """
    options = _options(arguments)
    folder = RunFolder(options.run)
    folder.record()
    with _alone(folder):
        if options.readmit and options.device is not None:
            _readmit(folder, options.device)
        elif options.device is not None:
            _forget(folder, options.device, options)
        elif options.older_than_days is not None:
            _remove_older(folder, options.older_than_days, as_json=options.as_json)
    return 0


def _options(arguments: Sequence[str]) -> _Options:
    parser = ArgumentParser(prog="sf-server forget", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("device", nargs="?", metavar="DEVICE", default=None, help="name of the device")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument(
        "--delete-adapters",
        action="store_true",
        default=False,
        help="delete the adapter and checkpoints it trained, too",
    )
    parser.add_argument("--readmit", action="store_true", default=False, help="let a forgotten device in again")
    parser.add_argument(
        "--older-than-days", type=float, metavar="DAYS", default=None, help="instead of a device: all older samples"
    )
    parser.add_argument("--json", action="store_true", default=False, help="one JSON document on standard output")
    found = parser.parse_args(arguments)
    if (found.device is None) == (found.older_than_days is None):
        raise UsageError(
            "sf-server forget removes either one device or samples of an age",
            cure="give the name of a device, as sf-server devices lists it, or --older-than-days",
        )
    if found.older_than_days is not None and (found.delete_adapters or found.readmit or not found.older_than_days >= 0):
        raise UsageError(
            "--older-than-days takes a number of days, and goes without --delete-adapters and --readmit",
            cure="give it alone, with --run",
        )
    return _Options(
        run=found.run,
        device=found.device,
        readmit=found.readmit,
        delete_adapters=found.delete_adapters,
        older_than_days=found.older_than_days,
        as_json=found.json,
    )


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    try:
        with folder.lock(wait_s=LOCK_WAIT_S):
            yield
    except AlreadyRunning as problem:
        raise AlreadyRunning(
            f"sf-server train works in {folder.path}: samples that it may be training on cannot be removed",
            cure="stop it with Ctrl-C (it saves), forget, and go on with --resume",
        ) from problem


def _forget(folder: RunFolder, device: str, options: _Options) -> None:
    _check_known(folder, device)
    forgotten = forget_device(folder, device, delete_adapters=options.delete_adapters, now_s=time.time(), say=_say)
    if options.as_json:
        print_json(msgspec.to_builtins(forgotten))
    else:
        print("\n".join(report_lines(forgotten, run=folder.path)))


def report_lines(forgotten: Forgotten, *, run: Path) -> Iterator[str]:
    """What was done, for people."""
    device, proof = forgotten.device, forgotten.proof
    yield (
        f"{device}: {forgotten.train_samples:,} samples to train on and {forgotten.validation_samples:,} held out "
        f"are removed; its outboxes: {forgotten.outboxes}"
    )
    lifted = f"; {forgotten.lifted_samples:,} of them had been lifted" if forgotten.lifted_samples else ""
    yield f"store: {byte_amount(forgotten.bytes_before)} before, {byte_amount(forgotten.bytes_after)} after{lifted}"
    if not proof.traces:
        yield "proof: there were no bytes to look for"
    else:
        yield _proof_line(proof)
    if proof.shared:
        yield f"       but for {proof.shared:,} that samples of other devices hold as well, which are still there"
    if forgotten.influenced and forgotten.influenced_deleted:
        yield f"deleted, because trained on these samples: {', '.join(forgotten.influenced)}"
        yield f"       sf-server train --run {run} --resume trains anew from the samples that are left"
    elif forgotten.influenced:
        yield f"trained on these samples, and keeping what was learned: {', '.join(forgotten.influenced)}"
        yield f"       to be rid of that: sf-server forget {device} --run {run} --delete-adapters, then train with --resume"
    yield f"{device} is not let in any more, until sf-server forget {device} --run {run} --readmit"


def _proof_line(proof: Proof) -> str:
    return (
        f"proof: {proof.traces:,} strings of 16 bytes from these samples and {proof.outboxes} outbox ids were looked for in "
        f"every file: {proof.found_before:,} found before; afterwards none in {proof.files} files with {proof.nbytes:,} bytes"
    )


def _check_known(folder: RunFolder, device: str) -> None:
    with Store.open_read_only(folder.store_path) as store:
        names = sorted({summary.device for summary in store.device_summaries()} | store.removals().banned)
    if device in names:
        return
    close = difflib.get_close_matches(device, names, n=1)
    known = f"its devices are {', '.join(names[:20])}" if names else "no device has connected to it"
    raise UsageError(
        f"the run in {folder.path} knows no device {device!r}; {known}",
        cure=f"did you mean {close[0]}?" if close else "sf-server devices lists them",
    )


def _readmit(folder: RunFolder, device: str) -> None:
    with Remover(folder.store_path) as remover:
        if not remover.readmit(device):
            raise UsageError(
                f"{device!r} is no forgotten device of the run in {folder.path}", cure="sf-server devices lists them"
            )
    print(f"{device} may come in again, as a new device")


def _remove_older(folder: RunFolder, days: float, *, as_json: bool) -> None:
    now_s = time.time()
    before_s = now_s - days * DAY_S
    with Remover(folder.store_path) as remover:
        forget_lifted(folder.lifted_path, remover.seqs_before(before_s))
        removed = remover.remove_older(before_s, now_s=now_s)
        remover.compact()
    if as_json:
        print_json({"train_samples": removed.train_samples, "validation_samples": removed.validation_samples})
    else:
        print(f"{removed.samples:,} samples older than {days:g} days are removed, and the store is written anew")


def _say(text: str) -> None:
    say(f"sf-server forget: {text}")
