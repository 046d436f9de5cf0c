"""What the whole model is fine-tuned for, from the settings: task, templates, labels."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sf_contract import limits
from sf_contract.errors import DataError, UsageError
from sf_contract.manifest import Task, TaskSpec, Template
from sf_contract.records import CSV_SUFFIXES, JSON_LINES_SUFFIXES, Row, read_records
from sf_contract.samples import LABEL_COLUMN, template_fields
from sf_export.settings import ExportSettings

_CLASSIFICATION_TEMPLATE: Final = "{text}"
_PROMPT_TEMPLATE: Final = "{prompt}"
_COMPLETION_TEMPLATE: Final = "{completion}"
_MAX_LABELS_FILE_BYTES: Final = 4 * limits.MIB


def task_spec(settings: ExportSettings, *, end_token_id: int | None = None) -> TaskSpec:
    """The task of an export.

    Raises:
        UsageError: labels or templates do not fit the task.
        DataError: the file with the labels cannot be read.
    """
    match settings.task:
        case Task.TEXT_CLASSIFICATION:
            return TaskSpec(task=settings.task, template=_classification_template(settings), labels=_labels(settings))
        case Task.CAUSAL_LM:
            if settings.text_pair is not None:
                raise UsageError(
                    "--text-pair is for classification", cure="write both columns into --template, or leave it out"
                )
            if settings.labels or settings.labels_from:
                raise UsageError(
                    "causal-lm has no labels", cure="leave out --labels, or use --task text-classification"
                )
            template = Template(
                prompt=_with_column(settings.template or _PROMPT_TEMPLATE),
                completion=_with_column(settings.completion_template or _COMPLETION_TEMPLATE),
            )
            return TaskSpec(task=settings.task, template=template, labels=(), end_token_id=end_token_id)


def _classification_template(settings: ExportSettings) -> Template:
    if settings.completion_template is not None:
        raise UsageError(
            "text-classification has no completion", cure="leave out --completion-template, or use --task causal-lm"
        )
    if settings.text_pair is None:
        return Template(prompt=_with_column(settings.template or _CLASSIFICATION_TEMPLATE))
    if settings.template is not None:
        raise UsageError(
            "--text-pair and --template both say how a row becomes a text", cure="leave one of the two out"
        )
    if settings.text_pair[0] == settings.text_pair[1]:
        raise UsageError(f"--text-pair names {settings.text_pair[0]} twice", cure="name two columns")
    return Template(prompt=" ".join(f"{{{column}}}" for column in settings.text_pair))  # until the model is known


def _with_column(template: str) -> str:
    if not template_fields(template):
        raise UsageError(
            f"template {template!r} names no column, so every sample would be the same text",
            cure="name a column in braces, such as {text}",
        )
    return template


def _labels(settings: ExportSettings) -> tuple[str, ...]:
    if settings.labels and settings.labels_from:
        raise UsageError("--labels and --labels-from are both given", cure="give one of them")
    labels = settings.labels or (_labels_of_file(Path(settings.labels_from)) if settings.labels_from else ())
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    problems = {
        "text-classification needs at least two labels": len(labels) < 2,
        f"labels are named twice: {', '.join(repeated)}": bool(repeated),
        f"there are {len(labels)} labels; at most {limits.MAX_LABELS} are allowed": len(labels) > limits.MAX_LABELS,
        "a label is empty or longer than 256 characters": any(not 1 <= len(label) <= 256 for label in labels),
    }
    for problem, present in problems.items():
        if present:
            raise UsageError(problem, cure="give --labels a,b,c or --labels-from FILE with every class once")
    return labels


def _labels_of_file(path: Path) -> tuple[str, ...]:
    """Labels of a data file in order of first appearance, or the lines of any other file."""
    if path.suffix.lower() in JSON_LINES_SUFFIXES | CSV_SUFFIXES:
        records = (row.record for row in read_records(path) if isinstance(row, Row))
        return tuple(dict.fromkeys(record[LABEL_COLUMN] for record in records if record.get(LABEL_COLUMN, "").strip()))
    try:
        with path.open(encoding="utf-8-sig") as stream:
            lines = stream.read(_MAX_LABELS_FILE_BYTES).splitlines()
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}", cure="check the path") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8 text", cure="convert the file to UTF-8") from problem
    return tuple(line.strip() for line in lines if line.strip())
