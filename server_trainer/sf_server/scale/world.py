"""The processes that train together, and what they say to one another. The one door to `torch.distributed`, but for pipelines.

Within a node the leader tells the others what to do; over all nodes gradients are added up. On one node nothing listens
on any address but the machine's own loopback: processes meet through a file.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Self

import torch
import torch.distributed as dist
from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]  # not in the module's __all__

from sf_contract.errors import AddressInUse
from sf_server.scale.place import Place, endpoint_of, is_this_machine

FILE: Final = "file"
LOOPBACK_INTERFACE: Final = "lo"
WITHIN_NODE: Final = timedelta(days=30)
"""Others of a node wait for their leader as long as it waits for devices; should it die, their connection to it breaks."""

ROLL_CALL_S: Final = 5.0
_POLL_S: Final = 0.1


class PeerLost(Exception):
    """Another process is gone, or does not answer; everybody starts again from the last common checkpoint."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the processes of a training find one another.

    Attributes:
        address: `file:///...` on one node, `tcp://host:port` of node 0 for several.
        timeout_s: a process that does not answer for so long is lost.
    """

    address: str
    timeout_s: float


class World:
    """This process's connection to all others.

    Attributes:
        place: which process this is.
    """

    def __init__(self, place: Place, node: dist.ProcessGroup) -> None:
        self.place = place
        self.node = node

    @classmethod
    def join(cls, place: Place, meeting: Meeting, *, device: torch.device) -> Self:
        """Meet all others.

        Raises:
            PeerLost: not all of them came in time.
        """
        if stays_on_machine(meeting.address):
            os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK_INTERFACE
        timeout = timedelta(seconds=meeting.timeout_s)
        with _translated(f"{place} waits at {meeting.address} for {place.ranks} processes to meet"):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=_store(place, meeting.address, timeout),
                rank=place.rank,
                world_size=place.ranks,
                timeout=timeout,
            )
            groups = [
                dist.new_group(
                    [node * place.local_ranks + local for local in range(place.local_ranks)],
                    timeout=WITHIN_NODE,
                    backend="gloo",
                )
                for node in range(place.nodes)
            ]
        return cls(place, groups[place.node])

    def leave(self) -> None:
        """End the connection; the others may go on only if they have left too."""
        dist.destroy_process_group()

    def add_up(self, values: torch.Tensor) -> None:
        """Replace `values` by their sum over all processes, the same to the last bit in all of them.

        Raises:
            PeerLost: one of them is gone or silent.
        """
        with self._naming_the_lost("while gradients were added up"):
            dist.all_reduce(values)

    def add_up_in_node(self, values: torch.Tensor) -> None:
        """The same over the processes of this node."""
        with self._naming_the_lost("within the node"):
            dist.all_reduce(values, group=self.node)

    def from_leader(self, values: torch.Tensor) -> None:
        """Replace `values` in all processes of this node by those of its leader."""
        with self._naming_the_lost("within the node"):
            dist.broadcast(values, group=self.node, group_src=0)

    def to_leader(self, values: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
        """The values of every process of this node, in the leader; nothing in the others.

        Args:
            values: one dimension.
            sizes: length of every process's values.
        """
        with self._naming_the_lost("within the node"):
            if not self.place.leads:
                dist.send(values, group=self.node, group_dst=0)
                return []
            received = [values]
            for local_rank, size in enumerate(sizes):
                if local_rank:
                    received.append(torch.empty(size, dtype=values.dtype))
                    dist.recv(received[-1], group=self.node, group_src=local_rank)
            return received

    def all_of(self, values: torch.Tensor) -> list[torch.Tensor]:
        """The values of every process, in all of them; the same shape everywhere."""
        found = [torch.empty_like(values) for _ in range(self.place.ranks)]
        with self._naming_the_lost("while the processes compared notes"):
            dist.all_gather(found, values)
        return found

    @contextmanager
    def _naming_the_lost(self, when: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as problem:
            missing = self._who_is_missing()
            raise PeerLost(f"{missing} does not answer any more, noticed {when} ({_first_line(problem)})") from problem

    def _who_is_missing(self) -> str:
        """Everybody who is left says so; those who have not within some seconds are missing."""
        place = self.place
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"here/{place.rank}", "yes")
            end_s = time.monotonic() + ROLL_CALL_S
            absent = [rank for rank in range(place.ranks) if rank != place.rank]
            while absent and time.monotonic() < end_s:
                absent = [rank for rank in absent if not store.check([f"here/{rank}"])]
                time.sleep(_POLL_S)
        except RuntimeError:
            return "the process that holds the rendezvous (rank 0 of node 0)"
        return " and ".join(_named(rank, place) for rank in absent) or "a process that went away and came back"


def stays_on_machine(address: str) -> bool:
    """True for a meeting whose processes all are on this machine."""
    scheme, _, where = address.partition("://")
    return scheme == FILE or is_this_machine(endpoint_of(where)[0])


def _store(place: Place, address: str, timeout: timedelta) -> Store:
    """Where processes find one another; the very first one holds it, and listens on the address of the meeting only."""
    scheme, _, where = address.partition("://")
    if scheme == FILE:
        return FileStore(where, place.ranks)
    host, port = endpoint_of(where)
    if not place.publishes:
        return TCPStore(host, port, place.ranks, is_master=False, timeout=timeout)
    listener = listen_on(host, port)
    return TCPStore(host, port, place.ranks, is_master=True, timeout=timeout, master_listen_fd=listener.detach())


def listen_on(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        AddressInUse: it cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as problem:
        raise AddressInUse(
            f"node 0 cannot listen on {host}:{port}: {problem.strerror}",
            cure="give an address of node 0 and a port that is free there as --rendezvous, on all nodes",
        ) from problem


def _named(rank: int, place: Place) -> str:
    node, local_rank = divmod(rank, place.local_ranks)
    return str(Place(node, place.nodes, local_rank, place.local_ranks, place.is_staged))


@contextmanager
def _translated(when: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as problem:
        raise PeerLost(f"{when}, in vain ({_first_line(problem)})") from problem


def _first_line(problem: BaseException) -> str:
    """What a library says, without the advice that follows."""
    return next(iter(str(problem).splitlines()), type(problem).__name__).partition(". This is typically")[0]
