"""Lines for the person watching that strangers cannot make come in floods."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

MAX_TOPICS: Final = 1_000


class Notices:
    """Says each topic once; when very many topics were said, new ones are dropped, and that is said too.

    Args:
        say: takes a line.
        most: so many topics and no more.
    """

    def __init__(self, say: Callable[[str], None], *, most: int = MAX_TOPICS) -> None:
        self.say = say
        self._most = most
        self._said: set[Hashable] = set()

    def say_once(self, topic: Hashable, text: str) -> None:
        """Say the text unless its topic was said before."""
        if topic in self._said or len(self._said) > self._most:
            return
        self._said.add(topic)
        self.say(text if len(self._said) <= self._most else "more of the kind happens and is not told any more")
