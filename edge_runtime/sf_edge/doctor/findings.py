"""What an examination finds: one finding per check, in order, and checks that make no sense any more are skipped by name."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sf_contract.errors import SplitFrozenError, one_line

T = TypeVar("T")
U = TypeVar("U")


class Check(enum.StrEnum):
    """Everything that is looked at, in this order."""

    SETTINGS = "settings"
    BUNDLE = "bundle"
    SIGNATURE = "signature"
    SELF_TEST = "self-test"
    DATA = "data"
    OUTBOX = "outbox"
    DISK = "disk"
    GOVERNOR = "governor"
    ADDRESS = "address"
    KEY = "key"
    SERVER_KEY = "server key"
    NAME = "host name"
    TCP = "tcp"
    HANDSHAKE = "handshake"
    VERDICT = "verdict"
    CLOCK = "clock"


class State(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        detail: what is so, or why the check was skipped; one line.
        cure: what to do about it; empty where there is nothing to do.
        exit_code: the one of the failure; 0 unless `state` is FAILED.
    """

    check: Check
    state: State
    detail: str
    cure: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that does not stop `sf-edge run`, but that a person should know, and what helps."""

    what: str
    cure: str


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a check that did not fail hands to later ones.

    Attributes:
        detail: what is so.
        concerns: make the finding a warning.
    """

    value: T
    detail: str
    concerns: tuple[Concern, ...] = ()


class Examination:
    """Carries checks out and keeps their findings.

    Args:
        tell: takes every finding as soon as there is one.
    """

    def __init__(self, tell: Callable[[Finding], None]) -> None:
        self._tell = tell
        self.findings: dict[Check, Finding] = {}

    def look(self, check: Check, body: Callable[[], Found[T]], *, needs: Sequence[Check] = ()) -> T | None:
        """What a check found; None when it failed, or when one that it needs did not come to a result."""
        missing = self._missing(needs)
        if missing:
            self.skip(check, missing)
            return None
        try:
            found = body()
        except SplitFrozenError as problem:
            self._note(failed(check, problem))
            return None
        self._note(_passed(check, found))
        return found.value

    def look_at(
        self, check: Check, given: U | None, body: Callable[[U], Found[T]], *, needs: Sequence[Check]
    ) -> T | None:
        """Like `look`, at something that the checks in `needs` gave, or did not give."""
        if given is None:
            self.skip(check, self._missing(needs) or "there is nothing to look at")
            return None
        return self.look(check, lambda: body(given), needs=needs)

    def skip(self, check: Check, why: str) -> None:
        """A check that is not made, and why."""
        self._note(Finding(check, State.SKIPPED, one_line(why)))

    def has_passed(self, check: Check) -> bool:
        """True for a check that was made and did not fail."""
        return check in self.findings and self.findings[check].state in (State.OK, State.WARNING)

    @property
    def exit_code(self) -> int:
        """That of the first failure; 0 when nothing failed."""
        return next((finding.exit_code for finding in self.findings.values() if finding.state is State.FAILED), 0)

    def _missing(self, needs: Sequence[Check]) -> str:
        """Why the first of these that did not come to a result did not; empty when all did."""
        missing = next((need for need in needs if not self.has_passed(need)), None)
        if missing is None:
            return ""
        finding = self.findings[missing]
        return finding.detail if finding.state is State.SKIPPED else f"because {missing} failed"

    def _note(self, finding: Finding) -> None:
        self.findings[finding.check] = finding
        self._tell(finding)


def failed(check: Check, problem: SplitFrozenError) -> Finding:
    """An error as a finding."""
    return Finding(check, State.FAILED, one_line(problem.what), one_line(problem.cure), problem.exit_code)


def _passed(check: Check, found: Found[T]) -> Finding:
    if not found.concerns:
        return Finding(check, State.OK, one_line(found.detail))
    what = "; ".join(one_line(concern.what) for concern in found.concerns)
    cure = "; ".join(one_line(concern.cure) for concern in found.concerns)
    detail = f"{one_line(found.detail)}; {what}" if found.detail else what
    return Finding(check, State.WARNING, detail, cure)
