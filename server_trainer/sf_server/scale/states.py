"""Weights and the optimizer's state on their way between the processes of a node: plain numbers in a known order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from sf_server.scale.world import World

KEYS: Final = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight, besides the number of its steps."""

State = tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]
OptimizerState = Mapping[str, Mapping[str, torch.Tensor]]
Parameters = Mapping[str, torch.Tensor]


def packed_state(parameters: Parameters, optimizer: OptimizerState) -> torch.Tensor:
    """One float32 row: steps of the optimizer (0: it has no state yet), then each weight with its two moments."""
    steps = next((float(state["step"]) for state in optimizer.values() if "step" in state), 0.0)
    pieces = [torch.tensor([steps])]
    for name, parameter in parameters.items():
        moments = [optimizer[name][key] for key in KEYS] if steps else [torch.zeros(parameter.shape)] * len(KEYS)
        pieces += [tensor.detach().cpu().float().reshape(-1) for tensor in (parameter, *moments)]
    return torch.cat(pieces)


def unpacked_state(row: torch.Tensor, shapes: Mapping[str, torch.Size]) -> State:
    """What was packed, by name; `shapes` in the order of packing."""
    steps, start = row[0].clone(), 1
    parameters: dict[str, torch.Tensor] = {}
    optimizer: dict[str, dict[str, torch.Tensor]] = {}
    for name, shape in shapes.items():
        found = []
        for _ in range(1 + len(KEYS)):
            end = start + shape.numel()
            found.append(row[start:end].reshape(shape))
            start = end
        parameters[name] = found[0]
        if steps:
            optimizer[name] = {"step": steps.clone(), **dict(zip(KEYS, found[1:], strict=True))}
    return parameters, optimizer


def size_of_state(shapes: Mapping[str, torch.Size]) -> int:
    """Numbers in a packed state."""
    return 1 + (1 + len(KEYS)) * sum(shape.numel() for shape in shapes.values())


def shapes_of(parameters: Parameters) -> dict[str, torch.Size]:
    """Shapes by name, in order."""
    return {name: parameter.shape for name, parameter in parameters.items()}


def send_state(world: World, parameters: Parameters, optimizer: OptimizerState) -> None:
    """Give a state to all other processes of this node; for its leader."""
    if world.place.local_ranks > 1:
        world.from_leader(packed_state(parameters, optimizer))


def receive_state(world: World, parameters: Parameters) -> State:
    """The state that the leader sends; `parameters` of the same names and shapes as its own."""
    shapes = shapes_of(parameters)
    row = torch.empty(size_of_state(shapes))
    world.from_leader(row)
    return unpacked_state(row, shapes)
