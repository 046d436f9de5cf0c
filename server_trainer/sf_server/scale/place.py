"""Which process of a training this is, and what that means for it. Needs no torch."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from sf_contract.errors import UsageError
from sf_server.settings import TrainSettings

LOCAL_RANK: Final = "LOCAL_RANK"
"""Set by torch's launcher for each process it starts."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """One process among those that train together.

    Attributes:
        node, nodes: the machine, and how many there are; each has its own ingest, store and run folder.
        local_rank, local_ranks: the process on this machine, and how many there are; the first one leads its machine.
        is_staged: the processes of the machine hold layers of one back end instead of a whole one each.
    """

    node: int = 0
    nodes: int = 1
    local_rank: int = 0
    local_ranks: int = 1
    is_staged: bool = False

    @property
    def rank(self) -> int:
        """Among all processes of all nodes."""
        return self.node * self.local_ranks + self.local_rank

    @property
    def ranks(self) -> int:
        """All processes of all nodes."""
        return self.nodes * self.local_ranks

    @property
    def leads(self) -> bool:
        """True for the process that reads the plan, saves, and tells the others of its node what to do."""
        return self.local_rank == 0

    @property
    def publishes(self) -> bool:
        """True for the one process that writes the adapter."""
        return self.rank == 0

    def share(self, batch: Sequence[T]) -> Sequence[T]:
        """The samples of a batch that this process computes; batches are sorted by length, so shares weigh about the same."""
        return batch if self.is_staged else batch[self.local_rank :: self.local_ranks]

    def __str__(self) -> str:
        of_node = f" of node {self.node}" if self.nodes > 1 else ""
        return f"{'stage' if self.is_staged else 'rank'} {self.local_rank}{of_node}"


def place_of(settings: TrainSettings, environment: Mapping[str, str]) -> Place:
    """Where this process stands, by the run's settings and what its launcher told it."""
    return Place(
        node=settings.node_rank,
        nodes=settings.nodes,
        local_rank=int(environment.get(LOCAL_RANK, "0")),
        local_ranks=processes_of_node(settings),
        is_staged=settings.pipeline_stages > 1,
    )


def processes_of_node(settings: TrainSettings) -> int:
    """How many trainer processes one node has."""
    return max(settings.ranks, settings.pipeline_stages)


def microbatches(settings: TrainSettings) -> int:
    """Parts into which a batch is cut for the stages."""
    return settings.pipeline_microbatches or 2 * settings.pipeline_stages


def check_scale(settings: TrainSettings) -> None:
    """Refuse settings of several processes that contradict one another.

    Raises:
        UsageError: they do, or gradients would travel over a network in the clear without having been told to.
    """
    stages = settings.pipeline_stages
    if stages > 1 and (settings.ranks > 1 or settings.nodes > 1):
        raise UsageError(
            "--pipeline-stages spreads one back end over processes of one node; with --ranks or --nodes it cannot be combined",
            cure="use stages where the back end does not fit one GPU, ranks and nodes where it does",
        )
    if stages > 1 and microbatches(settings) % stages:
        raise UsageError(
            f"--pipeline-microbatches {settings.pipeline_microbatches} is no multiple of --pipeline-stages {stages}",
            cure=f"give {stages}, {2 * stages}, {3 * stages} ...",
        )
    _check_nodes(settings)


def endpoint_of(rendezvous: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`.

    Raises:
        UsageError: it is not of this form.
    """
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(
            f"--rendezvous {rendezvous} is not HOST:PORT",
            cure="give a name or address of node 0, and a free port there",
        )
    return host.strip("[]"), int(port)


def is_this_machine(host: str) -> bool:
    """True for a name or address that never leaves the machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_nodes(settings: TrainSettings) -> None:
    if settings.nodes == 1:
        if settings.node_rank or settings.rendezvous is not None:
            raise UsageError(
                "--node-rank and --rendezvous belong to --nodes, which is 1", cure="give --nodes N as well, or neither"
            )
        return
    if settings.node_rank >= settings.nodes:
        raise UsageError(
            f"--node-rank {settings.node_rank} is not one of {settings.nodes} nodes",
            cure=f"give 0 to {settings.nodes - 1}, another one on every node",
        )
    if settings.rendezvous is None:
        raise UsageError(
            f"{settings.nodes} nodes must know where to meet",
            cure="give --rendezvous HOST:PORT of node 0 on all of them",
        )
    host, _ = endpoint_of(settings.rendezvous)
    if not is_this_machine(host) and not settings.trusted_network:
        raise UsageError(
            f"nodes exchange gradients over {host} in the clear, and whoever reaches that port can take part in the training",
            cure="keep them in a network of their own (or a VPN) that no device reaches, and say so with --trusted-network",
        )
