"""Instructions per token and self-test of front ends on EMULATED ARM processors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from sf_bench.arm import guest
from sf_bench.arm.counts import CountSummary, parse_marks, split_marks, summarize_counts
from sf_bench.arm.guest import GuestReport, Job, SelfTest
from sf_bench.arm.profiles import Profile
from sf_bench.arm.staging import stage_code
from sf_bench.arm.toolkit import EmulationFailed, Toolkit, emulator_command, run_emulated
from sf_contract.bundle import open_bundle
from sf_contract.errors import MismatchError, UsageError


class Plan(msgspec.Struct, frozen=True):
    """What to count: every target on every profile, one sequence of `tokens`, `repeats` times, one thread."""

    targets: tuple[Path, ...]
    profiles: tuple[Profile, ...]
    tokens: int
    repeats: int


class ArmResult(msgspec.Struct, frozen=True):
    """One target on one EMULATED processor.

    Attributes:
        target: bundle folder or ONNX file.
        profile: name of the processor.
        tokens: of the counted sequence.
        instructions: per token.
        self_test: the bundle's test vectors on this processor; None for an ONNX file.
        onnxruntime: version of the aarch64 wheel.
    """

    target: str
    profile: str
    tokens: int
    instructions: CountSummary
    self_test: SelfTest | None
    onnxruntime: str


def check_targets(plan: Plan) -> dict[Path, str]:
    """Refuse at once what would fail after minutes of emulation; the bundles' ids.

    Raises:
        BundleError: a bundle is damaged.
        UsageError: a file is missing, or a bundle allows fewer tokens.
    """
    ids = {}
    for target in plan.targets:
        if target.is_file():
            continue
        bundle = open_bundle(target)
        ids[target] = bundle.bundle_id
        allowed = bundle.manifest.geometry.max_tokens
        if plan.tokens > allowed:
            raise UsageError(
                f"--tokens {plan.tokens} is more than the {allowed} that {target} allows",
                cure="give fewer tokens, or export with a larger --max-tokens",
            )
    return ids


def count_instructions(
    plan: Plan, toolkit: Toolkit, *, ids: Mapping[Path, str], say: Callable[[str], None]
) -> list[ArmResult]:
    """Count every target on every profile, in one emulated process per profile; results in the order of the targets.

    Args:
        plan: what to count.
        toolkit: the emulator's files.
        ids: of the bundles, from `check_targets`.
        say: told what is counted now.

    Raises:
        EmulationFailed, MismatchError: a process did not end well or left no counts, or a bundle was exchanged meanwhile.
    """
    by_profile = []
    for profile in plan.profiles:
        say(f"sf-bench: {len(plan.targets)} targets, {plan.tokens} tokens, on EMULATED {profile.name}")
        by_profile.append(_count_on(plan, profile, toolkit))
        check_unchanged(ids, by_profile[-1])
    return [result for of_target in zip(*by_profile, strict=True) for result in of_target]


def check_unchanged(ids: Mapping[Path, str], results: Sequence[ArmResult]) -> None:
    """Refuse a table whose rows are of different bundles.

    Raises:
        MismatchError: a bundle is another one than when counting began.
    """
    expected = {str(target): bundle_id for target, bundle_id in ids.items()}
    for result in results:
        if result.self_test is not None and result.self_test.bundle_id != expected.get(result.target):
            raise MismatchError(
                f"{result.target} was exchanged while it was counted", cure="count again, and leave the bundle alone"
            )


def _count_on(plan: Plan, profile: Profile, toolkit: Toolkit) -> list[ArmResult]:
    job = Job(targets=tuple(str(target.resolve()) for target in plan.targets), tokens=plan.tokens, repeats=plan.repeats)
    with tempfile.TemporaryDirectory() as work:
        code, counts = stage_code(Path(work)), Path(work) / "counts"
        arguments = [guest.__file__, msgspec.json.encode(job).decode()]
        said = run_emulated(emulator_command(toolkit, profile, arguments, code=code, counts=counts), profile)
        marks = parse_marks(counts.read_text(encoding="ascii"))
    report = _decode(said, profile)
    parts = split_marks(marks, targets=len(plan.targets), repeats=plan.repeats)
    return [
        ArmResult(
            target=str(target),
            profile=profile.name,
            tokens=plan.tokens,
            instructions=summarize_counts(part, units=plan.tokens),
            self_test=self_test,
            onnxruntime=report.onnxruntime,
        )
        for target, part, self_test in zip(plan.targets, parts, report.self_tests, strict=True)
    ]


def _decode(said: str, profile: Profile) -> GuestReport:
    try:
        report = msgspec.json.decode(said, type=GuestReport)
    except msgspec.DecodeError as problem:
        raise EmulationFailed(
            f"the program on emulated {profile.name} said {said[:80]!r}, which is no report",
            cure="run sf-bench arm-setup, which checks every profile",
        ) from problem
    if report.machine != "aarch64":
        raise EmulationFailed(
            f"the program ran on {report.machine}, not on emulated aarch64", cure="run sf-bench arm-setup --rebuild"
        )
    return report


def failed_self_tests(results: Sequence[ArmResult]) -> list[ArmResult]:
    """Results whose bundle does not compute on that processor what it says."""
    return [result for result in results if result.self_test is not None and not result.self_test.passed]
