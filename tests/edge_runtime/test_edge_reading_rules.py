"""What a line of plain text means to a bundle's task."""

from __future__ import annotations

import pytest

from sf_contract.errors import DataError, UsageError
from sf_contract.manifest import Task, TaskSpec, Template
from sf_contract.records import RecordFormat
from sf_edge.sources.reading_rules import LABELS_SHOWN, labels_text, reading_rules


def spec(task: Task, prompt: str, completion: str | None = None) -> TaskSpec:
    labels = ("on", "off") if task is Task.TEXT_CLASSIFICATION else ()
    return TaskSpec(task=task, template=Template(prompt=prompt, completion=completion), labels=labels)


def test_a_line_fills_the_only_column_of_the_template() -> None:
    found = reading_rules(spec(Task.TEXT_CLASSIFICATION, "say: {sentence}"), record_format=None, label="on")
    assert found.text_field == "sentence"
    found = reading_rules(spec(Task.CAUSAL_LM, "Write on:", "{story}"), record_format=RecordFormat.TEXT, label=None)
    assert found.text_field == "story"
    found = reading_rules(spec(Task.CAUSAL_LM, "{text}", "{text}"), record_format=RecordFormat.TEXT, label=None)
    assert found.text_field == "text"


@pytest.mark.parametrize(
    ("task", "prompt", "completion", "label", "says"),
    [
        (Task.TEXT_CLASSIFICATION, "{text}", None, None, "--label NAME"),
        (Task.TEXT_CLASSIFICATION, "{a} and {b}", None, "on", "these columns: a, b"),
        (Task.TEXT_CLASSIFICATION, "no column", None, "on", "these columns: none"),
        (Task.TEXT_CLASSIFICATION, "{label}", None, "on", "made of the label alone"),
        (Task.CAUSAL_LM, "{prompt}", None, None, "these columns: prompt, completion"),
        (Task.CAUSAL_LM, "{q}", "{a}", None, "these columns: q, a"),
    ],
)
def test_what_a_line_of_text_cannot_fill_is_named(
    task: Task, prompt: str, completion: str | None, label: str | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        reading_rules(spec(task, prompt, completion), record_format=RecordFormat.TEXT, label=label)
    later = reading_rules(spec(task, prompt, completion), record_format=None, label=label)
    with pytest.raises(DataError, match=f"notes.txt is plain text, but .*{says}"):
        later.parser(RecordFormat.TEXT, where="notes.txt")
    later.parser(RecordFormat.JSONL, where="rows.jsonl")


def test_a_label_must_be_one_of_the_bundles_and_completions_have_none() -> None:
    with pytest.raises(UsageError, match="'maybe' is not a label") as caught:
        reading_rules(spec(Task.TEXT_CLASSIFICATION, "{text}"), record_format=None, label="maybe")
    assert "on, off" in caught.value.cure
    with pytest.raises(UsageError, match="--label is for classification"):
        reading_rules(spec(Task.CAUSAL_LM, "{text}", "{text}"), record_format=None, label="on")


def test_many_labels_are_cut() -> None:
    assert labels_text(("a", "b")) == "a, b"
    assert labels_text(tuple(map(str, range(LABELS_SHOWN + 5)))).endswith(f"{LABELS_SHOWN - 1} and 5 more")
