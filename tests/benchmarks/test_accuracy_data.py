"""Which phrases are trained on and judged: counted, paired, apart from one another."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from sf_bench.quality.phrases import Phrases, Tokenization, read_labelled, read_phrases
from sf_contract.errors import DataError
from sf_contract.manifest import Task, TaskSpec, Template

LABELS = ("bad", "good")
SPEC = TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(prompt="Review: {sentence}"), labels=LABELS)


class Words:
    """A tokenizer with one token per word."""

    def encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        del special_tokens
        return [zlib.crc32(word.encode()) for word in text.split()][:max_tokens]


def write(path: Path, rows: list[tuple[str, object]]) -> Path:
    lines = [json.dumps({"sentence": sentence, "label": label}) for sentence, label in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def read(tmp_path):
    def read_rows(
        train: list[tuple[str, object]], validation: list[tuple[str, object]], *, longest: int | None = None
    ) -> Phrases:
        how = Tokenization(spec=SPEC, tokenizer=Words(), max_tokens=16)
        return read_phrases(
            write(tmp_path / "train.jsonl", train),
            write(tmp_path / "validation.jsonl", validation),
            how=how,
            max_phrase_tokens=longest,
        )

    return read_rows


def test_every_row_that_is_left_out_is_counted_under_its_reason(read):
    phrases = read(
        [
            ("a fine film", "good"),
            ("a fine film", "good"),  # repeated
            ("so so", "good"),
            ("so so", "bad"),  # contradicts the row before: neither is used
            ("very dull", "bad"),  # inside a validation text
            ("one two three four five", "bad"),  # too long with the template's word
            ("a film", "unheard-of"),  # unusable
            ("dull", "bad"),
        ],
        [("it is very dull indeed", "bad"), ("a joy", "good")],
        longest=5,
    )
    counts = phrases.counts
    # "dull" is inside "it is very dull indeed" too.
    assert (counts.rows, counts.unusable, counts.repeated, counts.in_validation, counts.too_long) == (8, 1, 3, 2, 1)
    assert counts.left == len(phrases.pool) == 1
    assert len(phrases.validation) == 2


def test_only_whole_words_count_as_occurring_in_a_validation_text(read):
    phrases = read([("art", "good"), ("he art", "bad")], [("the heart of it", "good")])
    assert len(phrases.pool) == 2


def test_a_number_as_label_names_a_class_by_its_index(tmp_path):
    path = write(tmp_path / "rows.jsonl", [("x", 0), ("y", 1), ("z", 2), ("w", "good")])
    assert [record["label"] for record in read_labelled(path, LABELS)] == ["bad", "good", "2", "good"]


def test_a_class_that_is_called_like_a_number_keeps_its_name(tmp_path):
    path = write(tmp_path / "rows.jsonl", [("x", "1"), ("y", "0")])
    assert [record["label"] for record in read_labelled(path, ("1", "0"))] == ["1", "0"]


def test_parquet_gives_the_same_records_as_json_lines(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [("a fine film", 1), ("very dull", 0)]
    table = pyarrow.table({"sentence": [text for text, _ in rows], "label": [label for _, label in rows]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert read_labelled(tmp_path / "rows.parquet", LABELS) == read_labelled(
        write(tmp_path / "rows.jsonl", rows), LABELS
    )


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but nothing else"])
def test_a_missing_or_damaged_parquet_file_is_one_of_our_errors(tmp_path, content):
    pytest.importorskip("pyarrow", reason="pyarrow reads Parquet")
    path = tmp_path / "rows.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.parquet"):
        read_labelled(path, LABELS)


def test_a_seed_draws_the_same_phrases_again_and_another_seed_draws_others(read):
    phrases = read([(f"phrase number {n}", n % 2) for n in range(50)], [("apart", "good")])
    drawn = phrases.drawn(20, seed=3)
    assert phrases.drawn(20, seed=3) == drawn
    assert phrases.drawn(20, seed=4) != drawn
    assert len({tuple(sample.token_ids) for sample in drawn}) == 20


def test_asking_for_more_phrases_than_there_are_says_how_many_there_are(read):
    phrases = read([("one", "good"), ("two", "bad")], [("apart", "good")])
    with pytest.raises(DataError, match="gives 2 phrases"):
        phrases.drawn(3, seed=0)


def test_equal_digests_mean_equal_inputs(read):
    rows = [(f"phrase number {n}", n % 2) for n in range(10)]
    first = read(rows, [("apart", "good")])
    digest = first.digest(first.drawn(5, seed=0))
    again = read(rows, [("apart", "good")])
    assert again.digest(again.drawn(5, seed=0)) == digest
    assert first.digest(first.drawn(5, seed=1)) != digest
    other_label = read(rows, [("apart", "bad")])
    assert other_label.digest(other_label.drawn(5, seed=0)) != digest


def test_a_validation_file_without_usable_rows_is_refused_and_names_the_columns(read):
    with pytest.raises(DataError) as caught:
        read([("one", "good")], [("apart", "unheard-of")])
    assert "sentence" in caught.value.cure
    assert "label" in caught.value.cure
