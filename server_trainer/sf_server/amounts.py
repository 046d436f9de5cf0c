"""Numbers as people read them."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("", "k", "M", "G", "T", "P", "E")


def amount(value: float, unit: str) -> str:
    """Three digits and a decimal prefix: `1.23 MB`, `950 B`."""
    for prefix in _UNITS[:-1]:
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}".rstrip()
        value /= 1000
    return f"{value:.3g} {_UNITS[-1]}{unit}".rstrip()


def byte_amount(nbytes: float) -> str:
    """Bytes with a decimal prefix."""
    return amount(nbytes, "B")


def age(then_s: float, now_s: float) -> str:
    """How long ago, in the unit that says enough: `12 s`, `5 min`, `3 h`, `2 d`."""
    seconds = max(0.0, now_s - then_s)
    for unit, length_s, until_s in (("s", 1, 120), ("min", 60, 7_200), ("h", 3_600, 172_800)):
        if seconds < until_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
