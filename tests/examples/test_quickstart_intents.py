from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter

import pytest
from intents import IntentData, make_intents
from labelled import labels_of, split_by_label
from phrases import TRAINING_TEMPLATES
from unseen_phrases import UNSEEN_TEMPLATES
from words import SLOTS

GOLDEN_SHA256 = "0f3651a0803ec8e42ebdecf03d05cb2f45bd542cdfd57f1e80f9a5d12183c9d1"

ALL_TEMPLATES = tuple(itertools.chain(*TRAINING_TEMPLATES.values(), *UNSEEN_TEMPLATES.values()))
_SLOT = re.compile(r"\{([a-z_]+)\}")


@pytest.fixture(scope="module")
def data() -> IntentData:
    return make_intents()


def test_there_are_eight_intents_with_125_training_and_35_validation_sentences_each(data: IntentData) -> None:
    assert Counter(row.label for row in data.train) == dict.fromkeys(TRAINING_TEMPLATES, 125)
    assert Counter(row.label for row in data.validation) == dict.fromkeys(UNSEEN_TEMPLATES, 35)
    assert len(TRAINING_TEMPLATES) == 8


def test_all_sentences_are_distinct(data: IntentData) -> None:
    texts = [row.text for row in data.train + data.validation]
    assert len(texts) == len(set(texts)) == 1280


def test_sentences_have_4_to_14_words(data: IntentData) -> None:
    assert not [row.text for row in data.train + data.validation if not 4 <= len(row.text.split()) <= 14]


@pytest.mark.parametrize("intent", sorted(TRAINING_TEMPLATES))
def test_every_intent_has_many_templates_and_all_are_used(intent: str, data: IntentData) -> None:
    training, unseen = TRAINING_TEMPLATES[intent], UNSEEN_TEMPLATES[intent]
    assert len(training) >= 14
    assert len(unseen) >= 6
    for templates, rows in ((training, data.train), (unseen, data.validation)):
        for template in templates:
            assert any(_pattern(template).fullmatch(row.text) for row in rows), template


def test_no_template_occurs_twice_whatever_its_slots_are_called() -> None:
    templates = [_SLOT.sub("*", template) for template in ALL_TEMPLATES]
    assert len(templates) == len(set(templates))


def test_no_training_template_can_produce_a_validation_sentence(data: IntentData) -> None:
    patterns = [_pattern(template) for templates in TRAINING_TEMPLATES.values() for template in templates]
    assert not [row.text for row in data.validation if any(pattern.fullmatch(row.text) for pattern in patterns)]


def test_the_slots_of_the_templates_are_the_slots_that_have_words() -> None:
    assert {slot for template in ALL_TEMPLATES for slot in _SLOT.findall(template)} == set(SLOTS)


def test_each_of_four_devices_holds_exactly_two_intents_and_shares_nothing(data: IntentData) -> None:
    shares = split_by_label(data.train, 4)
    assert [len(labels_of(share)) for share in shares] == [2, 2, 2, 2]
    assert len(set().union(*map(labels_of, shares))) == 8
    assert sorted(row.text for share in shares for row in share) == sorted(row.text for row in data.train)


def test_the_data_set_of_the_default_seed_never_changes(data: IntentData) -> None:
    rows = [[row.text, row.label] for row in data.train + data.validation]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == GOLDEN_SHA256


def test_another_seed_gives_other_sentences(data: IntentData) -> None:
    assert make_intents(8) != data


def _pattern(template: str) -> re.Pattern[str]:
    parts = _SLOT.split(template)
    literals, slots = parts[::2], parts[1::2]
    choices = ["(?:" + "|".join(map(re.escape, SLOTS[slot])) + ")" for slot in slots]
    return re.compile("".join(itertools.chain(*zip(map(re.escape, literals), [*choices, ""], strict=True))))
