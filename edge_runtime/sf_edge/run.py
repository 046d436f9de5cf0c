"""`sf-edge run`: opens everything, runs the loop, reports."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack
from pathlib import Path

import msgspec

from sf_contract import SOFTWARE
from sf_contract.bundle import Bundle
from sf_contract.command import print_json, say
from sf_contract.front_end import FrontEnd, open_front_end, run_self_test
from sf_contract.messages import PROTOCOL_VERSION, Hello
from sf_contract.signing import read_trust_list, signature_text
from sf_contract.tokenizer import BundleTokenizer, open_tokenizer
from sf_edge.bench.report import counted
from sf_edge.bench.tuning_files import default_tuning_folder
from sf_edge.bundles.candidates import Acceptance
from sf_edge.bundles.choice import choose_bundle, this_place, tuned_threads
from sf_edge.clock import SYSTEM_CLOCK, Clock
from sf_edge.governor.activity import ActivityFile
from sf_edge.governor.pace import Pace, Senses, blind_spots, limits_of
from sf_edge.governor.placement import parse_cpus, place_process
from sf_edge.governor.probe import SystemProbe
from sf_edge.interrupts import Interrupts
from sf_edge.link.dealer import Link
from sf_edge.link.security import open_link_keys
from sf_edge.loop import EdgeLoop, Work
from sf_edge.memory import give_back_memory
from sf_edge.outbox.lock import FolderLock
from sf_edge.outbox.place import beginning_text, outbox_folder, waiting_texts
from sf_edge.outbox.queue import Outbox, read_outbox_status
from sf_edge.outbox.records import OutboxStatus, Owner
from sf_edge.producer import Producer, RolePolicy, largest_sample_bytes, longest_sample_tokens
from sf_edge.progress import RunSummary, summary_text
from sf_edge.session import USUAL_TIMING, Session, State, Terms, Timing
from sf_edge.settings import RunSettings, check_settings
from sf_edge.sources.files import Surroundings
from sf_edge.sources.opening import check_data, open_source
from sf_edge.sources.reading_rules import reading_rules
from sf_edge.status import set_aside_lines

EXIT_SIGNAL_BASE = 128


def run(settings: RunSettings) -> int:
    """Run until everything is acknowledged or a signal comes; the exit code.

    Raises:
        SplitFrozenError: every failure a person can act on.
    """
    place_process(nice=settings.nice, cpus=None if settings.cpus is None else parse_cpus(settings.cpus))
    with Interrupts() as interrupts:
        return run_until(settings, interrupts, clock=SYSTEM_CLOCK)


def run_until(settings: RunSettings, interrupts: Interrupts, *, clock: Clock, timing: Timing = USUAL_TIMING) -> int:
    """Like `run`, with the signals, the clocks and the patience as parameters."""
    started_s = clock.now_s()
    check_settings(settings)
    keys = open_link_keys(settings.link_choice())
    check_data(settings.data_choice())
    bundle = _accepted_bundle(settings)
    folder = outbox_folder(settings.outbox_root(), bundle.bundle_id)
    with ExitStack() as opened:
        outbox = _open_outbox(settings, bundle, folder, opened)
        link = opened.enter_context(Link(settings.server, keys))
        pace = opened.enter_context(_pace(settings, folder, clock=clock))
        work = _prepare(settings, bundle, outbox=outbox, link=link, pace=pace, clock=clock, timing=timing)
        EdgeLoop(work, clock=clock, say=say).run(interrupts)
        if interrupts.received is not None and work.session.state is not State.FINISHED:
            return _stopped(outbox, folder, interrupts.received)
        _report(outbox, folder, wall_s=clock.now_s() - started_s, as_json=settings.json)
        return 0


def _accepted_bundle(settings: RunSettings) -> Bundle:
    trust = None if settings.trust is None else read_trust_list(Path(settings.trust).expanduser())
    chosen = choose_bundle(
        Path(settings.bundle).expanduser(),
        Acceptance(trust),
        place=this_place(default_tuning_folder()),
        say=lambda text: say(f"{settings.device}: {text}"),
    )
    signed_by = signature_text(chosen.candidate.signer)
    say(f"{settings.device}: bundle {chosen.bundle.bundle_id[:12]} is whole, signed by {signed_by}")
    return chosen.bundle


def _threads(settings: RunSettings, bundle_id: str) -> int:
    """As asked for, else as `sf-edge bench --tune` found on this very machine, else one."""
    if settings.threads is not None:
        return settings.threads
    tuning = tuned_threads(
        bundle_id, this_place(default_tuning_folder()), say=lambda text: say(f"{settings.device}: {text}")
    )
    if tuning is None:
        return 1
    say(
        f"{settings.device}: {counted(tuning.threads, 'thread')}, as sf-edge bench --tune found here "
        f"({tuning.tokens_per_s:.0f} tokens/s); --threads overrides it"
    )
    return tuning.threads


def _open_outbox(settings: RunSettings, bundle: Bundle, folder: Path, opened: ExitStack) -> Outbox:
    """The bundle's outbox, after saying what waits in those of other bundles. A folder that was asked for by name is held as
    a whole: two processes that were given the same one are a mistake, whichever bundles they have."""
    root, device = settings.outbox_root(), settings.device
    if settings.outbox is not None and root != folder:
        opened.enter_context(FolderLock(root))
    beginning = beginning_text(root, folder, bundle.bundle_id)
    outbox = Outbox(folder, owner=_owner(settings, bundle), max_bytes=settings.max_outbox_bytes)
    opened.enter_context(outbox)
    for text in (beginning, *waiting_texts(root, read_outbox_status, besides=folder, device=device)):
        if text is not None:
            say(f"{device}: {text}")
    return outbox


def _owner(settings: RunSettings, bundle: Bundle) -> Owner:
    manifest = bundle.manifest
    return Owner(
        bundle_id=bundle.bundle_id, device=settings.device, codec=manifest.wire_codec, hidden=manifest.geometry.hidden
    )


def _prepare(
    settings: RunSettings,
    bundle: Bundle,
    *,
    outbox: Outbox,
    link: Link,
    pace: Pace,
    clock: Clock,
    timing: Timing,
) -> Work:
    """Load the front end, prove that it computes what the bundle says, and join the parts."""
    longest_tokens = longest_sample_tokens(bundle.manifest, settings.max_tokens)
    rules = reading_rules(bundle.manifest.task, record_format=settings.format, label=settings.label)
    around = Surroundings(clock=clock.now_s, say=say, move=outbox.move_sources)
    source = open_source(settings.data_choice(), rules=rules, positions=outbox.positions, around=around)
    tokenizer = open_tokenizer(bundle)
    give_back_memory()  # before the front end needs its own room: the peak is lower
    front_end = open_front_end(bundle, threads=_threads(settings, bundle.bundle_id))
    error = run_self_test(bundle, front_end)
    give_back_memory()
    say(f"{settings.device}: bundle {bundle.bundle_id[:12]} passed its self-test with {error:.2%} error")
    terms = Terms(
        hello=_hello(outbox, settings.device, bundle_id=bundle.bundle_id, error=error),
        address=settings.server,
        give_up_after_s=settings.give_up_after_s,
        timing=timing,
        ends=link.ends,
    )
    return Work(
        bundle_id=bundle.bundle_id,
        device=settings.device,
        data=settings.data_choice().shown,
        largest_sample_bytes=largest_sample_bytes(bundle.manifest, longest_tokens),
        source=source,
        producer=_producer(settings, bundle, tokenizer=tokenizer, front_end=front_end, max_tokens=longest_tokens),
        outbox=outbox,
        session=Session(terms, random=random.random, now_s=clock.now_s()),
        link=link,
        pace=pace,
    )


def _pace(settings: RunSettings, outbox_folder: Path, *, clock: Clock) -> Pace:
    """The governor, after saying which of its settings have nothing to read on this machine."""
    probe = SystemProbe()
    for blind_spot in blind_spots(settings, probe.read()):
        say(f"{settings.device}: {blind_spot}")
    activity_file = ActivityFile(outbox_folder, wall_s=clock.wall_s)
    return Pace(limits_of(settings), Senses(probe=probe, clock=clock, say=say, activity_file=activity_file))


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


def _producer(
    settings: RunSettings, bundle: Bundle, *, tokenizer: BundleTokenizer, front_end: FrontEnd, max_tokens: int
) -> Producer:
    return Producer(
        spec=bundle.manifest.task,
        tokenizer=tokenizer,
        front_end=front_end,
        max_tokens=max_tokens,
        policy=RolePolicy(role=settings.role, holdout=settings.holdout),
        label=settings.label,
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
