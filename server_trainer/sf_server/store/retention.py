"""Retention: samples that are too old are removed from a run while it trains, when nobody is about to read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sf_contract.errors import DiskFull
from sf_server.run_folder import RunFolder
from sf_server.store.removal import Remover
from sf_server.training.lifted import forget_lifted

DAY_S: Final = 86_400.0


class Retention:
    """Removes old samples once a day.

    Args:
        folder: the run.
        days: samples that came longer ago are removed; to the hour, so at most an hour late.
        clock: seconds since 1970.
        say: told what was removed.
    """

    def __init__(
        self, folder: RunFolder, *, days: float, clock: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._days = days
        self._clock = clock
        self._say = say
        self._due_s = float("-inf")

    def remove_expired(self) -> None:
        """Remove what is too old, if that was not done within the last day.

        Call it between windows: what is removed then was trained on in this epoch already, or is not begun.

        Raises:
            StoreError: the store cannot be used.
        """
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + DAY_S
        try:
            with Remover(self._folder.store_path) as remover:
                before_s = now_s - self._days * DAY_S
                seqs = remover.seqs_before(before_s)
                removed = remover.remove_older(before_s, now_s=now_s)
            if removed.samples:
                forget_lifted(self._folder.lifted_path, seqs)
        except DiskFull as problem:
            self._say(f"samples older than {self._days:g} days cannot be removed: {problem.one_line()}")
            return
        if removed.samples:
            self._say(
                f"{removed.samples:,} samples older than {self._days:g} days were removed; "
                "what the adapter has learned from them stays"
            )
