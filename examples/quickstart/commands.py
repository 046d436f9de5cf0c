"""The command lines of the demo: exactly what you would type yourself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from out_folder import OutFolder

HOLDOUT: Final = 0.1
"""Share of its samples that each device marks for validation during training."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the demo exports and trains."""

    out: OutFolder
    model: str
    split_layer: int
    max_tokens: int
    labels: str
    epochs: int
    devices: int


def export_command(plan: Plan) -> list[str]:
    """Cut the model, quantize the front end, write the bundle."""
    return [
        "sf-export", "--model", plan.model, "--split-layer", str(plan.split_layer), "--task", "text-classification",
        "--labels", plan.labels, "--max-tokens", str(plan.max_tokens), "--out", str(plan.out.bundle),
    ]  # fmt: skip


def server_command(plan: Plan, *, bind: str) -> list[str]:
    """Receive activations and train until all devices have finished and all epochs are done."""
    return [
        "sf-server", "train", "--bundle", str(plan.out.bundle), "--model", plan.model, "--run", str(plan.out.run),
        "--bind", bind, "--expect-devices", str(plan.devices), "--epochs", str(plan.epochs),
        "--threads", "1",  # one core for training, the others for the devices, which are on this machine too
    ]  # fmt: skip


def edge_command(plan: Plan, device: str, *, server: str) -> list[str]:
    """Compute the activations of one device's private file and upload them."""
    return [
        "sf-edge", "run", "--bundle", str(plan.out.bundle), "--server", server, "--data", str(plan.out.data_of(device)),
        "--device", device, "--outbox", str(plan.out.outbox_of(device)), "--holdout", str(HOLDOUT), "--threads", "1",
        "--json",
    ]  # fmt: skip


def eval_command(plan: Plan) -> list[str]:
    """Measure the accuracy on rows no device has, through the bundle's front end and through the fp32 one."""
    return ["sf-server", "eval", "--run", str(plan.out.run), "--data", str(plan.out.validation), "--json"]


def devices_command(out: OutFolder) -> list[str]:
    """List what the server stored of each device."""
    return ["sf-server", "devices", "--run", str(out.run), "--json"]
