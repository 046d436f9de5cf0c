"""How the rows of a file or pipe are to be read: its format, and what a line of plain text means to the bundle's task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sf_contract.errors import DataError, UsageError
from sf_contract.lines import LineSplitter
from sf_contract.manifest import Task, TaskSpec
from sf_contract.records import RecordFormat, RecordParser, format_of
from sf_contract.samples import LABEL_COLUMN, template_fields

LABELS_SHOWN = 30


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """What decides how bytes become rows.

    Attributes:
        record_format: the format asked for; None goes by the ending of each file's name.
        text_field: the column that a line of plain text fills; empty when plain text cannot be used.
        no_text_reason: why it cannot be used.
    """

    record_format: RecordFormat | None = None
    text_field: str = "text"
    no_text_reason: str = ""

    def format_of(self, path: Path) -> RecordFormat | None:
        """The format of a file; None when its name does not tell."""
        return self.record_format or format_of(path)

    def check(self, record_format: RecordFormat, *, where: str) -> None:
        """Refuse a format that this bundle cannot use.

        Raises:
            DataError: plain text cannot be used with this bundle or without a label.
        """
        if record_format is RecordFormat.TEXT and not self.text_field:
            raise DataError(
                f"{where} is plain text, but {self.no_text_reason}",
                cure="give JSON Lines or CSV with these columns, or the option named",
            )

    def parser(
        self,
        record_format: RecordFormat,
        *,
        where: str,
        splitter: LineSplitter | None = None,
        header: list[str] | None = None,
    ) -> RecordParser:
        """A parser; with a splitter it goes on behind the lines that the splitter has passed over.

        Raises:
            DataError: as `check`.
        """
        self.check(record_format, where=where)
        has_rows = splitter is not None and splitter.nbytes > 0
        return RecordParser(
            record_format, where=where, text_field=self.text_field, splitter=splitter, header=header, has_rows=has_rows
        )


def reading_rules(spec: TaskSpec, *, record_format: RecordFormat | None, label: str | None) -> ReadingRules:
    """The rules for a bundle's task.

    One line of plain text can fill one column only. Classification needs a label besides, which `label` gives to every
    row without one.

    Raises:
        UsageError: the label is none of the bundle's, or its task has no labels.
    """
    if label is not None:
        _check_label(spec, label)
    reason = _no_text_reason(spec, label)
    if record_format is RecordFormat.TEXT and reason:
        raise UsageError(
            f"--format text cannot be used: {reason}",
            cure="give JSON Lines or CSV with these columns, or the option named",
        )
    field = "" if reason else _columns(spec)[0]
    return ReadingRules(record_format=record_format, text_field=field, no_text_reason=reason)


def labels_text(labels: tuple[str, ...]) -> str:
    """The labels of a bundle, the first ones when they are many."""
    more = f" and {len(labels) - LABELS_SHOWN} more" if len(labels) > LABELS_SHOWN else ""
    return ", ".join(labels[:LABELS_SHOWN]) + more


def _check_label(spec: TaskSpec, label: str) -> None:
    if spec.task is Task.CAUSAL_LM:
        raise UsageError("--label is for classification; this bundle completes texts", cure="leave --label out")
    if label not in spec.labels:
        raise UsageError(
            f"--label {label!r} is not a label of this bundle", cure=f"give one of these: {labels_text(spec.labels)}"
        )


def _no_text_reason(spec: TaskSpec, label: str | None) -> str:
    columns = _columns(spec)
    if len(columns) != 1:
        named = ", ".join(columns) or "none"
        return f"a line of text can fill one column only, and the bundle's template has these columns: {named}"
    if columns == (LABEL_COLUMN,):
        return "the bundle's template is made of the label alone"
    if spec.task is Task.TEXT_CLASSIFICATION and label is None:
        return "its lines have no label; --label NAME gives all of them the same one"
    return ""


def _columns(spec: TaskSpec) -> tuple[str, ...]:
    completion = "" if spec.task is Task.TEXT_CLASSIFICATION else spec.template.completion or "{completion}"
    return template_fields(spec.template.prompt + completion)
