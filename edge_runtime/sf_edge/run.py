"""`sf-edge run`: opens everything, runs the loop, reports."""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec

from sf_contract import SOFTWARE
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.command import print_json, say
from sf_contract.errors import DataError
from sf_contract.front_end import FrontEnd, open_front_end, run_self_test
from sf_contract.messages import PROTOCOL_VERSION, Hello
from sf_contract.records import read_records
from sf_contract.signing import check_signature, read_trust_list, signature_text
from sf_contract.tokenizer import open_tokenizer
from sf_edge.interrupts import Interrupts
from sf_edge.link import Link
from sf_edge.loop import Clock, EdgeLoop, Work
from sf_edge.outbox import Outbox
from sf_edge.outbox_records import OutboxStatus, Owner
from sf_edge.producer import Producer, RolePolicy, largest_sample_bytes, longest_sample_tokens
from sf_edge.progress import RunSummary, summary_text
from sf_edge.session import Session, State, Terms
from sf_edge.settings import RunSettings, check_settings
from sf_edge.sources import RowSource
from sf_edge.status import set_aside_lines

EXIT_SIGNAL_BASE = 128


def run(settings: RunSettings) -> int:
    """Run until everything is acknowledged or a signal comes; the exit code.

    Raises:
        SplitFrozenError: every failure a person can act on.
    """
    with Interrupts() as interrupts:
        return run_until(settings, interrupts, clock=Clock(now_s=time.monotonic, cpu_s=time.process_time))


def run_until(settings: RunSettings, interrupts: Interrupts, *, clock: Clock) -> int:
    """Like `run`, with the signals and clocks as parameters."""
    started_s = clock.now_s()
    check_settings(settings)
    data = Path(settings.data).expanduser()
    _check_readable(data, watch=settings.watch)
    bundle = _accepted_bundle(settings)
    folder = settings.outbox_folder(bundle.bundle_id)
    with ExitStack() as opened:
        outbox = opened.enter_context(
            Outbox(folder, owner=_owner(settings, bundle), max_bytes=settings.max_outbox_bytes)
        )
        link = opened.enter_context(Link(settings.server))
        work = _prepare(settings, bundle, data=data, outbox=outbox, link=link, clock=clock)
        EdgeLoop(work, clock=clock, say=say).run(interrupts)
        if interrupts.received is not None and work.session.state is not State.FINISHED:
            return _stopped(outbox, folder, interrupts.received)
        _report(outbox, folder, wall_s=clock.now_s() - started_s, as_json=settings.json)
        return 0


def _accepted_bundle(settings: RunSettings) -> Bundle:
    trust = None if settings.trust is None else read_trust_list(Path(settings.trust).expanduser())
    bundle = open_bundle(Path(settings.bundle).expanduser())
    signer = check_signature(bundle, trust)
    say(f"{settings.device}: bundle {bundle.bundle_id[:12]} is whole, signed by {signature_text(signer)}")
    return bundle


def _check_readable(data: Path, *, watch: bool) -> None:
    """Fail before the long work when there is nothing to read, and do not hang on a pipe."""
    if data.exists() and not data.is_file():
        raise DataError(f"{data} is not a plain file", cure="give a .jsonl or .csv file")
    if next(read_records(data), None) is None and not watch:
        raise DataError(f"{data} holds no rows", cure="give a file with one JSON object or CSV row per line")


def _owner(settings: RunSettings, bundle: Bundle) -> Owner:
    manifest = bundle.manifest
    return Owner(
        bundle_id=bundle.bundle_id, device=settings.device, codec=manifest.wire_codec, hidden=manifest.geometry.hidden
    )


def _prepare(settings: RunSettings, bundle: Bundle, *, data: Path, outbox: Outbox, link: Link, clock: Clock) -> Work:
    """Load the front end, prove that it computes what the bundle says, and join the parts."""
    longest_tokens = longest_sample_tokens(bundle.manifest, settings.max_tokens)
    front_end = open_front_end(bundle, threads=settings.threads)
    error = run_self_test(bundle, front_end)
    say(f"{settings.device}: bundle {bundle.bundle_id[:12]} passed its self-test with {error:.2%} error")
    terms = Terms(
        hello=_hello(outbox, settings.device, bundle_id=bundle.bundle_id, error=error),
        address=settings.server,
        give_up_after_s=settings.give_up_after_s,
    )
    return Work(
        bundle_id=bundle.bundle_id,
        device=settings.device,
        data=data,
        largest_sample_bytes=largest_sample_bytes(bundle.manifest, longest_tokens),
        source=RowSource(data, position=outbox.position, watch=settings.watch, clock=clock.now_s),
        producer=_producer(settings, bundle, front_end=front_end, max_tokens=longest_tokens),
        outbox=outbox,
        session=Session(terms, random=random.random, now_s=clock.now_s()),
        link=link,
    )


def _hello(outbox: Outbox, device: str, *, bundle_id: str, error: float) -> Hello:
    return Hello(
        protocol=PROTOCOL_VERSION,
        software=SOFTWARE,
        device=device,
        outbox=outbox.outbox_id,
        bundle_id=bundle_id,
        self_test_error=error,
        waiting_samples=outbox.waiting_samples,
    )


def _producer(settings: RunSettings, bundle: Bundle, *, front_end: FrontEnd, max_tokens: int) -> Producer:
    return Producer(
        spec=bundle.manifest.task,
        tokenizer=open_tokenizer(bundle),
        front_end=front_end,
        max_tokens=max_tokens,
        policy=RolePolicy(role=settings.role, holdout=settings.holdout),
    )


def _stopped(outbox: Outbox, folder: Path, received: signal.Signals) -> int:
    say(
        f"stopped by {received.name}; {outbox.waiting_samples} samples wait safely in {folder}; "
        "the same command resumes where this one stopped"
    )
    return EXIT_SIGNAL_BASE + received


def _report(outbox: Outbox, folder: Path, *, wall_s: float, as_json: bool) -> None:
    status = outbox.status()
    summary = _summary(status, folder, wall_s=wall_s)
    if as_json:
        print_json(msgspec.to_builtins(summary))
    else:
        say("\n".join((summary_text(summary), *set_aside_lines(status.set_aside))))


def _summary(status: OutboxStatus, folder: Path, *, wall_s: float) -> RunSummary:
    counters = status.counters
    return RunSummary(
        device=status.owner.device,
        outbox_id=status.outbox_id,
        bundle_id=status.owner.bundle_id,
        outbox=str(folder),
        rows=counters.rows,
        skipped=counters.skipped,
        not_finite=counters.not_finite,
        samples=counters.samples,
        cut=counters.cut,
        acknowledged=counters.acknowledged,
        rejected=counters.rejected,
        waiting=status.waiting_samples,
        forward_passes=counters.forward_passes,
        uploaded_samples=counters.uploaded_samples,
        resent_samples=counters.resent_samples,
        bytes_up=counters.bytes_up,
        bytes_down=counters.bytes_down,
        cpu_seconds=counters.cpu_s,
        wall_seconds=wall_s,
    )
