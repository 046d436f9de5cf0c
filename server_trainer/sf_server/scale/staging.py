"""One stage of a run's back end, made from the whole model: its layers, LoRA as in one piece, and a learner."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, cast

import torch
import torch.distributed as dist

from sf_model.back import BackEnd, Segment
from sf_model.checkpoint import LoadedModel
from sf_model.taking_apart import sharing_weights
from sf_server.pieces import Pieces
from sf_server.scale.orders import Channel
from sf_server.scale.pipeline import Pipeline, PipelineSettings
from sf_server.scale.place import microbatches
from sf_server.scale.stage_learner import FirstStage, StageLearner
from sf_server.scale.stages import ScheduleKind, divide_layers, plan_of_stage
from sf_server.training.lora import LoraPlan, trainable
from sf_server.training.making import learner_of, lora_plan, put_lora

_LAYER: Final = r"\.(\d+)\."


def make_stage(pieces: Pieces, loaded: LoadedModel, channel: Channel) -> tuple[StageLearner, LoraPlan]:
    """A learner of this process's stage, and what gets LoRA in all stages; `loaded` is used up.

    The weights begin as they would in one piece: they are drawn for the whole back end, which is let go again.
    """
    place, model = channel.world.place, loaded.model
    whole = BackEnd(sharing_weights(model), pieces.first_layer)
    plan = lora_plan(pieces, whole, loaded)
    put_lora(pieces, whole, plan)
    start = {name: parameter.detach() for name, parameter in trainable(whole).items()}
    bounds = divide_layers(pieces.first_layer, whole.layers, place.local_ranks)
    stage, pad_side, blocks_path = bounds[place.local_rank], whole.pad_side, whole.blocks_path
    del whole
    kind = FirstStage if place.leads else Segment
    segment = kind(model, stage[0], until=stage[1], pad_side=pad_side)
    is_last = place.local_rank == place.local_ranks - 1
    put_lora(pieces, segment, plan_of_stage(plan, stage, is_last=is_last))
    _take_over(trainable(segment), start)
    segment.to(pieces.device)
    learner = cast(StageLearner, learner_of(pieces, segment, kind=StageLearner))
    pipeline = Pipeline(segment, _settings(pieces, channel), group=_group(), device=pieces.device)
    learner.join_stages(pipeline, channel, shapes=shapes_by_stage(start, bounds, blocks_path))
    if isinstance(segment, FirstStage):
        segment.pipeline, segment.channel = pipeline, channel
    return learner, plan


def shapes_by_stage(
    parameters: Mapping[str, torch.Tensor], bounds: Sequence[tuple[int, int]], blocks_path: str
) -> tuple[dict[str, torch.Size], ...]:
    """Names and shapes of what learns in each stage; what belongs to no layer is the head's, in the last one."""
    found: dict[int, dict[str, torch.Size]] = defaultdict(dict)
    for name, parameter in parameters.items():
        match = re.search(re.escape(blocks_path) + _LAYER, name)
        layer = bounds[-1][0] if match is None else int(match.group(1))
        index = next(index for index, (first, until) in enumerate(bounds) if first <= layer < until)
        found[index][name] = parameter.shape
    return tuple(found[index] for index in range(len(bounds)))


def _take_over(parameters: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])


def _settings(pieces: Pieces, channel: Channel) -> PipelineSettings:
    place = channel.world.place
    return PipelineSettings(
        index=place.local_rank,
        stages=place.local_ranks,
        schedule=ScheduleKind(pieces.settings.pipeline_schedule),
        microbatches=microbatches(pieces.settings),
        most_tokens=pieces.bundle.manifest.geometry.max_tokens,
    )


def _group() -> dist.ProcessGroup:
    """All processes: stages fill one node."""
    return cast(dist.ProcessGroup, dist.group.WORLD)
