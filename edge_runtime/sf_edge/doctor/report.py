"""What `sf-edge doctor` tells a person, line by line, and a machine, as one document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

from sf_edge.doctor.findings import Check, Finding, State

_STATE_WIDTH: Final = max(len(state) for state in State)
_CHECK_WIDTH: Final = max(len(check) for check in Check)


def finding_text(finding: Finding) -> str:
    """One finding; its cure on a line of its own."""
    line = f"{finding.state:<{_STATE_WIDTH}}  {finding.check:<{_CHECK_WIDTH}}  {finding.detail}"
    indent = " " * (_STATE_WIDTH + _CHECK_WIDTH + 4)
    return f"{line}\n{indent}cure: {finding.cure}" if finding.cure else line


def conclusion_text(findings: Collection[Finding], *, exit_code: int) -> str:
    """The last line."""
    counts = Counter(finding.state for finding in findings)
    told = [
        text
        for state, text in (
            (State.FAILED, f"{counts[State.FAILED]} failed"),
            (State.WARNING, f"{counts[State.WARNING]} with a warning"),
            (State.SKIPPED, f"{counts[State.SKIPPED]} skipped"),
        )
        if counts[state]
    ]
    checks = f"{counts.total()} checks" + (f": {', '.join(told)}" if told else ", all well")
    return checks if exit_code == 0 else f"{checks}; exit code {exit_code}"


def report_json(findings: Collection[Finding], *, exit_code: int) -> dict[str, object]:
    """Everything for machines; `exit_code` of a check is null unless it failed."""
    return {
        "exit_code": exit_code,
        "checks": [
            {
                "check": finding.check.value,
                "state": finding.state.value,
                "detail": finding.detail,
                "cure": finding.cure or None,
                "exit_code": finding.exit_code or None,
            }
            for finding in findings
        ],
    }
