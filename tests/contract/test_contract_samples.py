"""From a record to token ids: template, truncation, labels, completion targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf_contract.activations import NO_TARGET
from sf_contract.manifest import Task, TaskSpec, Template
from sf_contract.samples import UnusableRecord, fill_template, template_fields, tokenize

BEGIN, END = 1, 2


class LetterTokenizer:
    """One token per letter, a beginning and an end as special tokens; like real ones they survive a cut."""

    def encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        letters = [ord(letter) for letter in text if letter.isalnum()]
        if not special_tokens:
            return letters if max_tokens is None else letters[:max_tokens]
        room = len(letters) if max_tokens is None else max(0, max_tokens - 2)
        return [BEGIN, *letters[:room], END]


CLASSIFY = TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(prompt="{text}"), labels=("no", "yes"))
COMPLETE = TaskSpec(task=Task.CAUSAL_LM, template=Template(prompt="{q}"), labels=(), end_token_id=99)


class PlainTokenizer(LetterTokenizer):
    """Without special tokens."""

    def encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        return super().encode(text, special_tokens=False, max_tokens=max_tokens)


def test_a_template_is_filled_in_one_pass() -> None:
    assert fill_template("{a} and {b_2}", {"a": "{b_2}", "b_2": "x"}) == "{b_2} and x"
    assert fill_template("no columns {not one} {}", {}) == "no columns {not one} {}"
    assert template_fields("{b} {a} {b} {1x}") == ("b", "a")


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(UnusableRecord, match=r"'text' is missing \(the row has: body, label\)"):
        fill_template("{text}", {"body": "x", "label": "no"})


@given(st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.text(max_size=20), min_size=1, max_size=4))
def test_any_values_come_through_unchanged(record: dict[str, str]) -> None:
    template = "|".join(f"{{{name}}}" for name in record)
    assert fill_template(template, record) == "|".join(record.values())


def test_classification_has_special_tokens_and_a_label_by_name() -> None:
    sample = tokenize({"text": "ab", "label": "yes"}, CLASSIFY, LetterTokenizer(), max_tokens=8)
    assert (sample.token_ids, sample.label, sample.was_cut) == ([BEGIN, 97, 98, END], 1, False)
    assert sample.targets is None


def test_a_long_text_is_cut_and_keeps_its_special_tokens() -> None:
    sample = tokenize({"text": "abcdef", "label": "no"}, CLASSIFY, LetterTokenizer(), max_tokens=5)
    assert (sample.token_ids, sample.was_cut) == ([BEGIN, 97, 98, 99, END], True)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "a"}, "'label' is missing"),
        ({"text": "a", "label": " "}, "missing or empty"),
        ({"text": "a", "label": "maybe"}, "label 'maybe' is unknown; the bundle knows: no, yes"),
        ({"text": "a", "label": "1"}, "unknown"),
        ({"text": " \n", "label": "no"}, "empty"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(record: dict[str, str], says: str) -> None:
    with pytest.raises(UnusableRecord, match=says):
        tokenize(record, CLASSIFY, LetterTokenizer(), max_tokens=8)


def test_a_text_without_tokens_is_unusable() -> None:
    with pytest.raises(UnusableRecord, match="no tokens"):
        tokenize({"text": "?!", "label": "no"}, CLASSIFY, PlainTokenizer(), max_tokens=8)


def test_for_prediction_the_label_may_be_absent() -> None:
    assert tokenize({"text": "a"}, CLASSIFY, LetterTokenizer(), max_tokens=8, need_label=False).label is None


def test_completion_rows_predict_the_next_token_of_the_completion_only() -> None:
    sample = tokenize({"q": "ab", "completion": "xy"}, COMPLETE, PlainTokenizer(), max_tokens=16)
    assert sample.token_ids == [97, 98, 120, 121]
    assert sample.targets is not None
    assert sample.targets.tolist() == [NO_TARGET, 120, 121, 99]
    assert not sample.was_cut


def test_without_an_end_token_the_last_completion_token_is_the_last_target() -> None:
    spec = TaskSpec(task=Task.CAUSAL_LM, template=Template(prompt="{q}", completion=" {a}"), labels=())
    sample = tokenize({"q": "ab", "a": "xy"}, spec, PlainTokenizer(), max_tokens=16)
    assert sample.token_ids == [97, 98, 120]
    assert sample.targets is not None
    assert sample.targets.tolist() == [NO_TARGET, 120, 121]


@given(prompt=st.integers(1, 12), completion=st.integers(1, 12), max_tokens=st.integers(1, 20))
def test_rows_and_targets_always_agree_and_never_exceed_the_limit(
    prompt: int, completion: int, max_tokens: int
) -> None:
    record = {"q": "p" * prompt, "completion": "c" * completion}
    try:
        sample = tokenize(record, COMPLETE, PlainTokenizer(), max_tokens=max_tokens)
    except UnusableRecord:
        assert prompt > max_tokens
        return
    whole = [112] * prompt + [99] * completion + [99]
    rows = min(max_tokens, len(whole) - 1)
    assert sample.token_ids == whole[:rows]
    assert sample.targets is not None
    assert sample.targets.tolist() == [NO_TARGET] * (prompt - 1) + whole[prompt : rows + 1]
    assert sample.was_cut == (len(whole) > rows + 1)


def test_a_prompt_that_leaves_no_room_for_a_completion_is_unusable() -> None:
    with pytest.raises(UnusableRecord, match="prompt alone has 5 tokens; at most 4"):
        tokenize({"q": "abcde", "completion": "x"}, COMPLETE, PlainTokenizer(), max_tokens=4)


@pytest.mark.parametrize("record", [{"q": "", "completion": "x"}, {"q": "a", "completion": ""}, {"q": "a"}])
def test_a_completion_record_needs_both_parts(record: dict[str, str]) -> None:
    with pytest.raises(UnusableRecord):
        tokenize(record, COMPLETE, PlainTokenizer(), max_tokens=8)
