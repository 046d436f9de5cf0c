"""Lines for the person watching that strangers cannot make come in floods."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

MAX_TOPICS: Final = 1_000


class Notices:
    """Says each topic once; when very many topics were said, new ones are dropped.

    Args:
        say: takes a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._said: set[Hashable] = set()

    def say_once(self, topic: Hashable, text: str) -> None:
        """Say the text unless its topic was said before."""
        if topic in self._said or len(self._said) >= MAX_TOPICS:
            return
        self._said.add(topic)
        self.say(text)
