"""A comparison as Markdown, which is also readable on a terminal."""

from __future__ import annotations

from typing import Final

from sf_bench.rivals.compare import Comparison, Result, RowError
from sf_bench.rivals.turns import Spread

_BEGIN: Final = "<!-- comparison: begin -->"
_END: Final = "<!-- comparison: end -->"
_HEAD: Final = (
    "front end",
    "tokens/s (quartiles)",
    "x fp32 ONNX (quartiles)",
    "x in processor time",
    "disk MB",
    "memory MB",
    "error mean / p99",
    "RMS-normalised",
)


def markdown_of(comparison: Comparison) -> str:
    """Conditions, table, what each row is, notes; ends with a newline."""
    rows = [_HEAD, *(_cells(result) for result in comparison.results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*_conditions(comparison), "", *lines, "", *_legend(comparison)]) + "\n"


def placed(table: str, document: str | None) -> str:
    """The document with the table between its two marks, or the table alone where there are no such marks."""
    if document is None or _BEGIN not in document or _END not in document:
        return table
    before, _, rest = document.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{table}\n{_END}{after}"


def _conditions(comparison: Comparison) -> list[str]:
    return [
        f"{comparison.model}, cut {comparison.split_layer}, 1 x {comparison.tokens} tokens, {comparison.threads} thread(s), "
        f"{comparison.rounds} rounds of {comparison.windows} sequences each, taking turns. Text: {comparison.text}.",
        f"Machine: {comparison.machine.line}.",
    ]


def _legend(comparison: Comparison) -> list[str]:
    named = [f"- `{result.name}`: {result.says}; {_ran(result)}" for result in comparison.results]
    return [*named, *(f"- {note}" for note in comparison.notes)]


def _ran(result: Result) -> str:
    if result.failed is not None:
        return f"**not measured**: {result.failed}"
    return result.version


def _cells(result: Result) -> tuple[str, ...]:
    if result.failed is not None:
        return (f"`{result.name}`", "not measured", *["-"] * (len(_HEAD) - 2))
    return (
        f"`{result.name}`",
        _spread(result.tokens_per_s, 0),
        _spread(result.ratio, 2),
        _spread(result.cpu_ratio, 2),
        _number(result.size_mb),
        _number(result.memory_mb),
        _error(result.error),
        _error(result.normalised_error),
    )


def _spread(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "-"
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f} - {spread.high:,.{digits}f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _error(error: RowError | None) -> str:
    return "-" if error is None else f"{error.mean:.2%} / {error.p99:.2%}"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
