"""Where the text to measure on comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from sf_contract.errors import DataError
from sf_contract.manifest import Task, TaskSpec, Template
from sf_export.calibration import MAX_SEQUENCES_TOKENS, PROSE_NAME, SEQUENCE_TOKENS, read_calibration

CLASSIFICATION = TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=("a", "b"))
COMPLETION = TaskSpec(task=Task.CAUSAL_LM, template=Template(prompt="{q} ", completion="{a}"), labels=())


class _OneTokenPerWord:
    def encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        return [len(word) for word in text.split()][:max_tokens]


def _read(path: Path | None, spec: TaskSpec = CLASSIFICATION, max_tokens: int = 256) -> list[tuple[int, ...]]:
    return list(read_calibration(path, spec, _OneTokenPerWord(), max_tokens=max_tokens).sequences)


def test_the_shipped_prose_is_enough_for_a_measurement() -> None:
    found = read_calibration(None, CLASSIFICATION, _OneTokenPerWord(), max_tokens=256)
    assert found.name == PROSE_NAME
    assert found.tokens >= 1_500
    assert len(found.sequences) >= 16


def test_plain_text_gives_one_sequence_per_line_that_is_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two\n\n   \nthree\n", encoding="utf-8")
    assert _read(path) == [(3, 3), (5,)]


def test_records_are_filled_into_the_template_and_rows_without_its_columns_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"q": "aa", "a": "b"}\n{"q": "only"}\nbroken\n{"q": "ccc", "a": "dddd"}\n', encoding="utf-8")
    assert _read(path, COMPLETION) == [(2, 1), (3, 4)]


def test_sequences_and_their_number_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(["word " * 1000] * 100), encoding="utf-8")
    sequences = _read(path)
    assert max(map(len, sequences)) == SEQUENCE_TOKENS
    assert sum(map(len, sequences)) < MAX_SEQUENCES_TOKENS + SEQUENCE_TOKENS
    assert max(map(len, _read(path, max_tokens=7))) == 7


def test_files_without_usable_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "other.csv").write_text("sentence,label\nx,y\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "text.pdf").write_text("text")
    for name in ("empty.txt", "other.csv", "binary.txt", "text.pdf", "missing.txt", "missing.jsonl"):
        with pytest.raises(DataError):
            _read(tmp_path / name)
