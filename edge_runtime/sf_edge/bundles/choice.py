"""Choosing among several quantizations of one front end: the fastest that passes its self-test on this processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from sf_contract.bundle import Bundle
from sf_contract.errors import BundleError, SelfTestFailed
from sf_contract.front_end import RUNTIME_VERSION, open_front_end, run_self_test
from sf_edge.bench.machine import describe_machine, machine_digest
from sf_edge.bench.report import Shape
from sf_edge.bench.tuning import Contest, Tried, Tuning, choose_quantization
from sf_edge.bench.tuning_files import contest_path, read_contest, read_tuning, tuning_path, write_record
from sf_edge.bench.turns import Effort, Instruments, median_tokens_per_s, random_tokens, take_turns
from sf_edge.bundles.candidates import (
    Acceptance,
    Candidate,
    LeftOut,
    accept_bundle,
    bundle_folders,
    check_same_front_end,
    none_left,
    sift,
)

SHORT: Final = Effort(rounds=4, seconds=2.0)
"""Long enough to tell quantizations apart that differ by a tenth, short enough to wait for once."""

TYPICAL_TOKENS: Final = 64

Say = Callable[[str], None]
Speeds = Callable[[Sequence[Bundle]], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where findings are kept, and the machine they are about."""

    tuning_folder: Path
    machine_digest: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The bundle to use.

    Attributes:
        candidate: it, and who signed it.
        reason: why this one of several; None where there was only one.
        left_out: the others that cannot be used.
    """

    candidate: Candidate
    reason: str | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def bundle(self) -> Bundle:
        """The bundle itself."""
        return self.candidate.bundle


def this_place(tuning_folder: Path) -> Place:
    """This machine, with the installed ONNX Runtime."""
    return Place(tuning_folder, machine_digest(describe_machine(), onnxruntime=RUNTIME_VERSION))


def choose_bundle(
    folder: Path, acceptance: Acceptance, *, place: Place, say: Say, speeds_of: Speeds | None = None
) -> Choice:
    """The bundle of a folder, or the best of the quantizations in it. Only several are measured, once, then remembered.

    Raises:
        BundleError: damaged, or none can be used.
        UntrustedBundle, SelfTestFailed: for that reason none can be used.
        MismatchError: they are of different front ends.
    """
    folders = bundle_folders(folder)
    if folders == (folder,):
        return Choice(accept_bundle(folder, acceptance))
    accepted, left_out = sift(folders, acceptance)
    if not accepted:
        raise none_left(folder, left_out)
    check_same_front_end(folder, accepted)
    contest, reason, failed = _contest(accepted, place=place, say=say, speeds_of=speeds_of or measured_speeds)
    unusable = (*left_out, *failed)
    for item in unusable:
        say(f"left out: {item.line}")
    if contest is None:
        raise none_left(folder, unusable)
    chosen = next(candidate for candidate in accepted if candidate.bundle.bundle_id == contest.chosen)
    say(f"chosen of {len(folders)} bundles: {chosen.bundle.folder.name}, {contest.chosen[:12]}, {reason}")
    return Choice(chosen, reason, unusable)


def remembered_choice(accepted: Sequence[Candidate], *, place: Place, say: Say) -> Candidate | None:
    """The one that was chosen here before among these, without measuring anything; None when there was no such choice."""
    by_id = {candidate.bundle.bundle_id: candidate for candidate in accepted}
    former = read_contest(contest_path(place.tuning_folder, list(by_id)), say=say)
    is_valid = former is not None and former.machine_digest == place.machine_digest and _covers(former, by_id)
    return by_id[former.chosen] if former is not None and is_valid else None


def tuned_threads(bundle_id: str, place: Place, *, say: Say) -> Tuning | None:
    """What `sf-edge bench --tune` found for this bundle on this machine; None where it never ran."""
    path = tuning_path(place.tuning_folder, bundle_id)
    return read_tuning(path, bundle_id=bundle_id, machine_digest=place.machine_digest, say=say)


def measured_speeds(bundles: Sequence[Bundle]) -> dict[str, float]:
    """Tokens per second of each with one thread, one sample of usual length per pass, taking turns."""
    geometry = bundles[0].manifest.geometry
    shape = Shape(rows=1, tokens=min(TYPICAL_TOKENS, geometry.max_tokens))
    measured = take_turns(
        {bundle.bundle_id: partial(open_front_end, bundle) for bundle in bundles},
        random_tokens([shape], vocabulary=geometry.vocabulary),
        SHORT,
        instruments=Instruments(now_s=time.perf_counter, cpu_s=time.process_time),
        random=Random(0),
    )
    return {bundle.bundle_id: median_tokens_per_s(measured, bundle.bundle_id) for bundle in bundles}


def _contest(
    accepted: Sequence[Candidate], *, place: Place, say: Say, speeds_of: Speeds
) -> tuple[Contest | None, str, list[LeftOut]]:
    """The contest, remembered or held now; None when nobody passed the self-test."""
    by_id = {candidate.bundle.bundle_id: candidate for candidate in accepted}
    path = contest_path(place.tuning_folder, list(by_id))
    former = read_contest(path, say=say)
    if former is not None and former.machine_digest == place.machine_digest and _covers(former, by_id):
        return (
            former,
            "as measured here before",
            [_remembered(by_id[tried.bundle_id], tried) for tried in _failures(former)],
        )
    passed, failed = _passing(accepted)
    if not passed:
        return None, "", failed
    speeds = dict(speeds_of([candidate.bundle for candidate in passed])) if len(passed) > 1 else {}
    chosen, reason = _winner(passed, speeds, former=None if former is None else former.chosen)
    contest = Contest(
        machine_digest=place.machine_digest,
        tried=(
            *(Tried(candidate.bundle.bundle_id, speeds.get(candidate.bundle.bundle_id)) for candidate in passed),
            *(Tried(_id_in(accepted, item), failure=item.problem.what) for item in failed),
        ),
        chosen=chosen,
    )
    _remember(path, contest, say)
    return contest, reason, failed


def _winner(passed: Sequence[Candidate], speeds: Mapping[str, float], *, former: str | None) -> tuple[str, str]:
    if len(passed) == 1:
        return passed[0].bundle.bundle_id, "the only one that can be used here"
    manifests = {candidate.bundle.bundle_id: candidate.bundle.manifest for candidate in passed}
    errors = {bundle_id: manifest.quantization.error.mean for bundle_id, manifest in manifests.items()}
    chosen, why = choose_quantization(speeds, errors, former=former)
    names = {candidate.bundle.bundle_id: candidate.bundle.folder.name for candidate in passed}
    told = ", ".join(f"{names[bundle_id]} {speed:.0f}" for bundle_id, speed in speeds.items())
    return chosen, f"{why}; tokens/s with one thread: {told}"


def _passing(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[LeftOut]]:
    passed: list[Candidate] = []
    failed: list[LeftOut] = []
    for candidate in candidates:
        try:
            run_self_test(candidate.bundle, open_front_end(candidate.bundle))
        except (SelfTestFailed, BundleError) as problem:
            failed.append(LeftOut(candidate.bundle.folder, problem))
        else:
            passed.append(candidate)
    return passed, failed


def _covers(former: Contest, by_id: Mapping[str, Candidate]) -> bool:
    """A file that names other bundles, or chose one that failed, was not written by this program."""
    usable = {tried.bundle_id for tried in former.tried if tried.failure is None}
    return {tried.bundle_id for tried in former.tried} == set(by_id) and former.chosen in usable


def _failures(contest: Contest) -> list[Tried]:
    return [tried for tried in contest.tried if tried.failure is not None]


def _remembered(candidate: Candidate, tried: Tried) -> LeftOut:
    problem = SelfTestFailed(tried.failure or "", cure="export a bundle for this kind of processor")
    return LeftOut(candidate.bundle.folder, problem)


def _id_in(accepted: Sequence[Candidate], item: LeftOut) -> str:
    return next(candidate.bundle.bundle_id for candidate in accepted if candidate.bundle.folder == item.folder)


def _remember(path: Path, contest: Contest, say: Say) -> None:
    try:
        write_record(path, contest)
    except OSError as problem:
        say(f"the choice cannot be kept in {path} ({problem.strerror}), so it is measured again next time")
