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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "is empty, or has blank lines only"),
        ("blank.txt", b"\n \n\t\r\n", "is empty, or has blank lines only"),
        ("empty.jsonl", b"", "is empty, or has blank lines only"),
        ("other.csv", b"sentence,label\nx,y\n", "line 2: column 'text' is missing"),
        ("broken.jsonl", b"{\n", "line 1: not JSON"),
        ("blank.jsonl", b'{"text": " "}\n', "is empty, or has blank lines only"),
        ("latin1.txt", "gr\u00fcn".encode("latin-1"), r"not UTF-8 text \(byte 2 is 0xfc\)"),
        ("binary.txt", b"\xff\xfe\x00", r"not UTF-8 text \(byte 0 is 0xff\)"),
        ("zeros.txt", b"text\0text", "character 4 is a zero byte"),
        ("text.pdf", b"text", "unknown ending '.pdf'"),
    ],
)
def test_files_without_usable_text_are_refused_with_what_was_found(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        _read(tmp_path / name)
    assert name in str(caught.value)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    for name in ("missing.txt", "missing.jsonl"):
        with pytest.raises(DataError, match="cannot be read"):
            _read(tmp_path / name)
    with pytest.raises(DataError, match="Is a directory"):
        _read(tmp_path)


def test_text_without_line_breaks_is_used_whole(tmp_path: Path) -> None:
    path = tmp_path / "one-line.txt"
    path.write_text("word " * 2_000, encoding="utf-8")
    assert len(_read(path)) == 5


def test_a_text_too_short_to_measure_well_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one two three", encoding="utf-8")
    shortfall = read_calibration(path, CLASSIFICATION, _OneTokenPerWord(), max_tokens=256).shortfall()
    assert shortfall is not None
    assert "short.txt gives only 3 tokens" in shortfall
    assert read_calibration(None, CLASSIFICATION, _OneTokenPerWord(), max_tokens=256).shortfall() is None
