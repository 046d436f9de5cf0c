"""What every hostile bundle is: a way to spoil a good one, and what the refusal must say. Its docstring argues for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_contract.errors import BundleError
from sf_contract.limits import MIB

Spoil = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Attack:
    """A hostile bundle.

    Attributes:
        spoil: turns the good bundle in a folder into the hostile one.
        says: words of the refusal.
        code: exit code of the refusal.
        memory_bytes: what Python may set aside until then; the good bundle has some kilobytes.
    """

    spoil: Spoil
    says: str
    code: int
    memory_bytes: int

    @property
    def name(self) -> str:
        """Name of the builder."""
        return self.spoil.__name__


ATTACKS: Final[list[Attack]] = []


def attack(says: str, *, code: int = BundleError.exit_code, memory_bytes: int = 32 * MIB) -> Callable[[Spoil], Spoil]:
    """Registers a builder."""

    def register(spoil: Spoil) -> Spoil:
        assert spoil.__doc__, f"{spoil.__name__} needs its argument"
        ATTACKS.append(Attack(spoil=spoil, says=says, code=code, memory_bytes=memory_bytes))
        return spoil

    return register
