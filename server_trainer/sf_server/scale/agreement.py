"""What all processes must have in common before they train together, checked when they meet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec
import torch

from sf_contract.errors import MismatchError
from sf_server.scale.world import World
from sf_server.settings import MAY_CHANGE_ON_RESUME, TrainSettings

STEPS_COMPARED: Final = 16
NONE: Final = -1


def fingerprint(settings: TrainSettings, bundle_ids: Sequence[str]) -> int:
    """A number that differs between runs whose results would; 62 bits of a SHA-256."""
    decisive = {
        name: value for name, value in msgspec.structs.asdict(settings).items() if name not in MAY_CHANGE_ON_RESUME
    }
    raw = msgspec.json.encode([sorted(bundle_ids), decisive, settings.nodes, settings.ranks], order="sorted")
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") >> 2


def check_same_run(world: World, settings: TrainSettings, bundle_ids: Sequence[str]) -> None:
    """All processes train with the same bundles and settings.

    Raises:
        MismatchError: some do not.
    """
    own = fingerprint(settings, bundle_ids)
    found = world.all_of(torch.tensor([own], dtype=torch.int64))
    local_ranks = world.place.local_ranks
    nodes = sorted({rank // local_ranks for rank, value in enumerate(found) if int(value) != int(found[0])})
    if nodes:
        raise MismatchError(
            f"node {', '.join(map(str, nodes))} trains with other bundles or settings than node 0",
            cure="start all nodes with the same bundles and options, but for --run, --bind, --node-rank and --expect-*",
        )


def common_step(world: World, own_steps: Sequence[int]) -> int | None:
    """The newest step that all nodes have a checkpoint of; None when no node has any.

    Args:
        own_steps: of this node's checkpoints; the same in all its processes.

    Raises:
        MismatchError: there are checkpoints, and none that all nodes have.
    """
    newest = sorted(own_steps, reverse=True)[:STEPS_COMPARED]
    padded = torch.tensor([*newest, *[NONE] * (STEPS_COMPARED - len(newest))], dtype=torch.int64)
    of_nodes: list[set[int]] = [
        set(steps.tolist()) - {NONE} for steps in world.all_of(padded)[:: world.place.local_ranks]
    ]
    if not any(of_nodes):
        return None
    common = set.intersection(*of_nodes)
    if not common:
        lacking = [str(node) for node, steps in enumerate(of_nodes) if not steps]
        which = (
            f"node {', '.join(lacking)} has no checkpoint"
            if lacking
            else "no checkpoint is of the same step everywhere"
        )
        raise MismatchError(
            f"the nodes cannot go on together: {which}",
            cure="leave out the nodes that have none (--nodes, --node-rank), or remove the checkpoints of all to train again",
        )
    return max(common)
