"""Predictions as they are told: the same words and the same JSON, whoever computed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

USUAL_CLASSES: Final = 5
"""So many of the likeliest classes are told unless more or fewer are asked for."""


@dataclass(frozen=True, slots=True)
class LikelyClass:
    """A class by its name, and how likely it is."""

    label: str
    probability: float


def prediction_json(text: str, classes: Sequence[LikelyClass]) -> dict[str, object]:
    """One prediction; `classes` are the likeliest, the likeliest first, at least one."""
    return {
        "text": text,
        "label": classes[0].label,
        "probability": classes[0].probability,
        "classes": [{"label": found.label, "probability": found.probability} for found in classes],
    }


def prediction_line(text: str, classes: Sequence[LikelyClass]) -> str:
    """The same for a person."""
    return f"{classes[0].label}  {classes[0].probability:.1%}  {text}"
