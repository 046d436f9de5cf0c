from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from labelled import LabelledText, keep_aside, labels_flag, labels_of, read_labelled, split_by_label, write_labelled

from sf_contract.errors import DataError, UsageError


def rows_of(labels: str) -> list[LabelledText]:
    return [LabelledText(text=f"text {number}", label=label) for number, label in enumerate(labels)]


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    rows = [LabelledText('say "hé" to Tom', "b"), LabelledText("x", "a")]
    write_labelled(tmp_path / "deep" / "file.jsonl", rows)
    assert read_labelled(tmp_path / "deep" / "file.jsonl").rows == tuple(rows)


def test_rows_without_text_or_label_and_broken_lines_are_counted(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": "x"}, {"text": " ", "label": "x"}, {"label": "x"}, {"text": "b", "label": 1}]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n", encoding="utf-8")
    file = read_labelled(path)
    assert file.rows == (LabelledText("a", "x"), LabelledText("b", "1"))
    assert file.skipped_rows == 3


def test_csv_files_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("label,text\nx,hello\ny,good bye\n", encoding="utf-8")
    assert read_labelled(path).rows == (LabelledText("hello", "x"), LabelledText("good bye", "y"))


def test_a_file_with_one_label_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write_labelled(path, rows_of("aaa"))
    with pytest.raises(DataError, match="3 usable rows with 1 labels"):
        read_labelled(path)


def test_a_label_with_a_comma_is_refused_because_labels_are_listed_with_commas() -> None:
    assert labels_flag(rows_of("cab")) == "a,b,c"
    with pytest.raises(UsageError, match="'x,y'"):
        labels_flag([LabelledText("t", "x,y")])


def test_a_tenth_of_each_label_is_kept_aside_and_small_labels_keep_something_to_train_on() -> None:
    train, validation = keep_aside(rows_of("a" * 30 + "b" * 2 + "c"))
    assert Counter(row.label for row in validation) == {"a": 3, "b": 1}
    assert Counter(row.label for row in train) == {"a": 27, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("labels", "devices", "held"),
    [
        ("abcdefgh", 4, [["a", "e"], ["b", "f"], ["c", "g"], ["d", "h"]]),
        ("abcde", 2, [["a", "c", "e"], ["b", "d"]]),
        ("abc", 3, [["a"], ["b"], ["c"]]),
        ("ab", 4, [["a"], ["b"], ["a"], ["b"]]),
        ("ab", 3, [["a"], ["b"], ["a"]]),
        ("abc", 1, [["a", "b", "c"]]),
    ],
)
def test_each_device_holds_as_few_labels_as_possible(labels: str, devices: int, held: list[list[str]]) -> None:
    rows = rows_of(labels * 10)
    shares = split_by_label(rows, devices)
    assert [labels_of(share) for share in shares] == held
    assert sorted(row.text for share in shares for row in share) == sorted(row.text for row in rows)


def test_devices_that_hold_the_same_label_have_different_rows_and_about_as_many() -> None:
    shares = split_by_label(rows_of("ab" * 7), 4)
    assert [len(share) for share in shares] == [4, 4, 3, 3]
    assert not set(shares[0]) & set(shares[2])
