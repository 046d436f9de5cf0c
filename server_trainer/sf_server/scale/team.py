"""The trainer processes of a run, seen from one of them: alone, a rank among others, or a stage of the back end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch

from sf_model.back import Segment
from sf_model.checkpoint import LoadedModel
from sf_server.pieces import Pieces
from sf_server.scale.agreement import check_same_run, common_step
from sf_server.scale.nodes import Nodes
from sf_server.scale.orders import Channel, Order
from sf_server.scale.place import Place
from sf_server.scale.rank_learner import RankLearner
from sf_server.scale.shared_feed import SharedFeed, shares_of_numbers
from sf_server.scale.stage_learner import StageLearner
from sf_server.scale.staging import make_stage
from sf_server.scale.world import Meeting, World
from sf_server.store.store import Store
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.feed import Feed
from sf_server.training.learner import Learner
from sf_server.training.lora import LoraPlan
from sf_server.training.making import make_learner
from sf_server.training.surroundings import Surroundings


@dataclass(frozen=True, slots=True, eq=False)
class Team:
    """This process and those it trains with.

    Attributes:
        place: which process this is.
        learner: what learns here.
        plan: what got LoRA, in all layers.
        channel: to the node's other processes; None for a process that trains alone.
    """

    place: Place
    learner: Learner
    plan: LoraPlan
    channel: Channel | None = None

    def among_nodes(self, around: Surroundings, weight: Callable[[], float]) -> Surroundings:
        """The loop's surroundings; where there are several nodes, all stop after the same step.

        Args:
            weight: number of this node's training samples, as far as it is known.
        """
        if not isinstance(self.learner, RankLearner) or self.place.nodes == 1:
            return around
        nodes = Nodes(self.learner, nodes=self.place.nodes, stop_asked=around.stopped, pause=around.wait, weight=weight)
        return dataclasses.replace(around, together=nodes, stopped=nodes.stopped)

    def sharing(self, around: Surroundings, store: Store, pieces: Pieces) -> Surroundings:
        """The loop's surroundings with a feed of which every process of the node brings its share."""
        if self.channel is None:
            return around
        feed = self._feed(around, store)
        shared = SharedFeed(feed, self.channel, balance=pieces.settings.balance, prepare=around.prepare)
        return dataclasses.replace(around, feed=shared, prepare=shared.prepare)

    def wait_for_leader(self) -> None:
        """Wait until the leader of the node has made the files that all of it share; all processes call it."""
        if self.channel is not None:
            self.channel.world.from_leader(torch.zeros(1))

    def settle_checkpoint(self, checkpoints: Checkpoints) -> None:
        """Leave no checkpoint that other nodes lack; all processes call it.

        Raises:
            MismatchError: the nodes have no checkpoint in common.
        """
        if self.channel is None:
            return
        step = common_step(self.channel.world, checkpoints.steps())
        if step is not None and self.place.leads:
            checkpoints.drop_after(step)

    def whole_back_end(self, pieces: Pieces) -> Segment:
        """A back end with all layers and the weights that were learned; that of stages is put together in main memory."""
        if not isinstance(self.learner, StageLearner):
            return self.learner.back_end
        in_memory = dataclasses.replace(pieces, device=torch.device("cpu"))
        whole, _ = make_learner(in_memory)
        whole.restore(*self.learner.state())
        return whole.back_end

    def dismiss(self) -> None:
        """Tell the node's other processes that training is over."""
        if self.channel is not None:
            self.channel.tell(Order.LEAVE)

    def follow(self, around: Surroundings, store: Store) -> None:
        """Do what the node's leader says, until it is over; for all processes but the leader."""
        if self.channel is None:
            raise RuntimeError("a process that trains alone has nobody to follow")
        follow(self.channel, self._feed(around, store), cast(RankLearner | StageLearner, self.learner))

    def _feed(self, around: Surroundings, store: Store) -> Feed:
        return around.feed or Feed(store, self.learner.back_end, around.train_device)


@contextmanager
def team_of(pieces: Pieces, place: Place, meeting: Meeting, loaded: LoadedModel) -> Iterator[Team]:
    """Meet the other processes of a run, if it has any; `loaded` is used up.

    Raises:
        PeerLost: not all of them came.
        MismatchError: they do not train the same run.
    """
    if place.ranks == 1:
        yield Team(place, *make_learner(pieces, loaded=loaded))
        return
    world = World.join(place, meeting, device=pieces.device)
    check_same_run(world, pieces.settings, [bundle.bundle_id for bundle in pieces.bundles])
    yield _joined(pieces, world, loaded)
    world.leave()


def _joined(pieces: Pieces, world: World, loaded: LoadedModel) -> Team:
    channel = Channel(world)
    if world.place.is_staged:
        return Team(world.place, *make_stage(pieces, loaded, channel), channel)
    learner, plan = make_learner(pieces, loaded=loaded, kind=RankLearner)
    cast(RankLearner, learner).join_world(channel, seed=pieces.settings.seed)
    return Team(world.place, learner, plan, channel)


def follow(channel: Channel, feed: Feed, learner: RankLearner | StageLearner) -> None:
    """Obey the orders of a node's leader until it says to leave."""
    batches: Iterator[BatchTensors] = iter(())
    while True:
        order, numbers = channel.hear()
        match order, learner:
            case Order.LEAVE, _:
                return
            case Order.WINDOW, _:
                batches = shares_of_numbers(feed, channel.world.place, numbers)
            case Order.STEP, _:
                learner.step(next(batches), rate_factor=0.0)
            case Order.RESTORE, _:
                learner.take_over()
            case Order.JOIN, RankLearner():
                learner.join()
            case Order.SCORE, StageLearner():
                mask = torch.zeros(numbers, dtype=torch.int64)
                channel.world.from_leader(mask)
                learner.score(mask)
            case Order.GATHER, StageLearner():
                learner.gather()
            case _:
                raise RuntimeError(f"the leader gave an order that makes no sense here: {order.name}")
