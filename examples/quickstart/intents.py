"""The demo's data set: things people say to a phone assistant, eight intents, the same on every machine."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final

from labelled import LabelledText
from phrases import TRAINING_TEMPLATES
from unseen_phrases import UNSEEN_TEMPLATES
from words import SLOTS

TRAINING_PER_INTENT: Final = 125
VALIDATION_PER_INTENT: Final = 35
DEFAULT_SEED: Final = 7

_SLOT = re.compile(r"\{([a-z_]+)\}")
_TRIES_PER_SENTENCE = 50


@dataclass(frozen=True, slots=True)
class IntentData:
    """Training sentences, and validation sentences made of templates that training never sees."""

    train: tuple[LabelledText, ...]
    validation: tuple[LabelledText, ...]


def make_intents(seed: int = DEFAULT_SEED) -> IntentData:
    """The data set of a seed: 8 x 125 training and 8 x 35 validation sentences, all distinct, each part shuffled."""
    rng = random.Random(seed)
    used: set[str] = set()
    train: list[LabelledText] = []
    validation: list[LabelledText] = []
    for part, templates, count in (
        (train, TRAINING_TEMPLATES, TRAINING_PER_INTENT),
        (validation, UNSEEN_TEMPLATES, VALIDATION_PER_INTENT),
    ):
        for intent in sorted(templates):
            texts = _sentences(templates[intent], count=count, used=used, rng=rng)
            part.extend(LabelledText(text, intent) for text in texts)
    rng.shuffle(train)
    rng.shuffle(validation)
    return IntentData(train=tuple(train), validation=tuple(validation))


def _sentences(templates: tuple[str, ...], *, count: int, used: set[str], rng: random.Random) -> list[str]:
    """`count` new sentences, taking the templates in turn; a template that has nothing new to say is passed over."""
    sentences: list[str] = []
    turn = 0
    while len(sentences) < count:
        text = _new_sentence(templates[turn % len(templates)], used=used, rng=rng)
        turn += 1
        if text is not None:
            used.add(text)
            sentences.append(text)
    return sentences


def _new_sentence(template: str, *, used: set[str], rng: random.Random) -> str | None:
    for _ in range(_TRIES_PER_SENTENCE):
        text = _SLOT.sub(lambda slot: rng.choice(SLOTS[slot[1]]), template)
        if text not in used:
            return text
    return None
