"""Naming the bundles of a run, and choosing among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sf_contract.bundle import Bundle
from sf_contract.errors import UsageError

_SHORT_ID: Final = 12
BUNDLE_HELP: Final = "of several bundles in the run: folder name or beginning of the id (default: the deepest cut)"


def bundle_by_name(bundles: Sequence[Bundle], wanted: str | None) -> Bundle:
    """The bundle whose folder has this name or whose id begins with it; the last, with the deepest cut, when none is asked for.

    Raises:
        UsageError: there is none, or more than one.
    """
    if wanted is None:
        return bundles[-1]
    found = [bundle for bundle in bundles if bundle.folder.name == wanted or bundle.bundle_id.startswith(wanted)]
    if len(found) != 1:
        raise UsageError(
            f"{'no' if not found else 'more than one'} bundle of the run is called {wanted!r}",
            cure=f"give the beginning of an id: {', '.join(map(bundle_name, bundles))}",
        )
    return found[0]


def bundle_name(bundle: Bundle) -> str:
    """What people are told: the folder's name, the beginning of the id, the cut."""
    return f"{bundle.folder.name} ({bundle.bundle_id[:_SHORT_ID]}, cut {bundle.manifest.geometry.split_layer})"
