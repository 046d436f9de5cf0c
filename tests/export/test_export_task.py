"""Task, templates and labels from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sf_contract.errors import DataError, UsageError
from sf_contract.manifest import Task, TaskSpec, Template
from sf_export.settings import ExportSettings
from sf_export.task import task_spec


def _spec(**settings: Any) -> TaskSpec:
    return task_spec(ExportSettings(split_layer=1, **settings))


def test_labels_keep_their_order() -> None:
    assert _spec(labels=("neg", "pos")) == TaskSpec(
        task=Task.TEXT_CLASSIFICATION, template=Template(prompt="{text}"), labels=("neg", "pos")
    )


def test_causal_lm_has_default_templates_for_prompt_and_completion() -> None:
    assert _spec(task=Task.CAUSAL_LM).template == Template(prompt="{prompt}", completion="{completion}")


def test_labels_are_read_from_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("b\n\n a \nc\n")
    assert _spec(labels_from=str(tmp_path / "labels.txt")).labels == ("b", "a", "c")


def test_labels_are_collected_from_data_files_in_order_of_first_appearance(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(
        '{"text": "x", "label": "b"}\n{"text": "y"}\nbroken\n{"label": "a"}\n{"label": "b"}\n'
    )
    (tmp_path / "d.csv").write_text("text,label\nx,b\ny,a\nz,b\n")
    for name in ("d.jsonl", "d.csv"):
        assert _spec(labels_from=str(tmp_path / name)).labels == ("b", "a")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "at least two labels"),
        ({"labels": ("one",)}, "at least two labels"),
        ({"labels": ("a", "b", "a")}, "twice: a"),
        ({"labels": ("a", "")}, "label is empty"),
        ({"labels": ("a", "b" * 257)}, "longer than 256"),
        ({"labels": ("a", "b"), "labels_from": "x.txt"}, "both given"),
        ({"labels": ("a", "b"), "task": Task.CAUSAL_LM}, "causal-lm has no labels"),
        ({"labels": ("a", "b"), "completion_template": "{c}"}, "has no completion"),
        ({"labels": ("a", "b"), "template": "no column"}, "names no column"),
        ({"task": Task.CAUSAL_LM, "completion_template": "yes"}, "names no column"),
    ],
)
def test_settings_that_do_not_fit_the_task_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        _spec(**settings)


def test_a_missing_or_unreadable_file_of_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name in ("missing.txt", "missing.csv", "latin.txt"):
        with pytest.raises(DataError):
            _spec(labels_from=str(tmp_path / name))
