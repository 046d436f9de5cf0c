"""A learner for one stage of a back end: the other stages learn in other processes of the node.

The leader holds the first stage. It saves and restores the weights of all of them, so a checkpoint is the same as one of a
back end in one piece, and training may go on with another number of stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sf_model.back import Segment
from sf_server.scale.orders import Channel, Order
from sf_server.scale.pipeline import Pipeline
from sf_server.scale.states import packed_state, receive_state, send_state, size_of_state, unpacked_state
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.learner import MAX_GRADIENT_NORM, Learner, Part, StepResult

Shapes = Mapping[str, torch.Size]


class FirstStage(Segment):
    """The leader's segment. Outside of training it answers for the whole back end."""

    pipeline: Pipeline | None = None
    channel: Channel | None = None

    def forward(self, rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Rows for the second stage while the stages train; else the logits of the last one."""
        if self.pipeline is None or self.channel is None or self.pipeline.is_training:
            return super().forward(rows, attention_mask)
        self.channel.tell(Order.SCORE, numbers=list(attention_mask.shape))
        self.channel.world.from_leader(attention_mask.cpu())
        return self.pipeline.answer(super().forward(rows, attention_mask), attention_mask)


class StageLearner(Learner):
    """The learner of one stage. Call `join_stages` before the first step."""

    def join_stages(self, pipeline: Pipeline, channel: Channel, *, shapes: tuple[Shapes, ...]) -> None:
        """Learn together with the other stages.

        Args:
            shapes: names and shapes of what learns, in each stage.
        """
        self._pipeline = pipeline
        self._channel = channel
        self._shapes = shapes
        self._all_shapes = {name: shape for stage in shapes for name, shape in stage.items()}

    def step(self, batch: BatchTensors, *, rate_factor: float) -> StepResult:
        """One step of all stages with the same batch; the first stage tells the others."""
        if self._channel.world.place.leads:
            self._channel.tell(Order.STEP)
        return super().step(batch, rate_factor=rate_factor)

    def size(self) -> int:
        """How many weights learn, in all stages."""
        return sum(shape.numel() for shape in self._all_shapes.values())

    def score(self, mask: torch.Tensor) -> None:
        """Pass on a batch that is scored, in all stages but the first."""
        self.back_end.model.train(False)
        self._pipeline.pass_on(mask)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
        """Weights and the optimizer's state of all stages; for the leader."""
        self._channel.tell(Order.GATHER)
        parameters: dict[str, torch.Tensor] = {}
        optimizer: dict[str, dict[str, torch.Tensor]] = {}
        for row, shapes in zip(self.gather(), self._shapes, strict=True):
            found = unpacked_state(row, shapes)
            parameters |= found[0]
            optimizer |= found[1]
        return parameters, optimizer

    def gather(self) -> list[torch.Tensor]:
        """The packed states of all stages in the leader, nothing in the others; all call it together."""
        row = packed_state(self.parameters, self.optimizer_state())
        return self._channel.world.to_leader(row, [size_of_state(shapes) for shapes in self._shapes])

    def restore(
        self, parameters: Mapping[str, torch.Tensor], optimizer: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> None:
        """Put back what a checkpoint holds, in all stages; for the leader."""
        self._channel.tell(Order.RESTORE)
        ordered = {name: parameters[name] for name in self._all_shapes}
        send_state(self._channel.world, ordered, optimizer)
        super().restore(parameters, optimizer)

    def take_over(self) -> None:
        """What `restore` does, in all stages but the first."""
        names = {name: torch.empty(shape, device="meta") for name, shape in self._all_shapes.items()}
        super().restore(*receive_state(self._channel.world, names))

    def _gradients(self, batch: BatchTensors) -> Part:
        loss, targets = self._pipeline.backward(batch)
        return Part(loss=loss, targets=targets)

    def _shared(self, part: Part, rate_factor: float) -> tuple[float, float]:
        """Only the last stage knows the loss, and only the first one the learning rate."""
        leads = self._channel.world.place.leads
        values = torch.tensor([part.loss, rate_factor if leads else 0.0], dtype=torch.float64)
        self._channel.world.add_up_in_node(values)
        loss, factor = values.tolist()
        return loss, factor

    def _clip(self) -> float:
        """As for a back end in one piece: the norm is that of the gradients of all stages."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        square = get_total_norm(gradients).double().cpu().square().reshape(1)
        self._channel.world.add_up_in_node(square)
        norm = math.sqrt(float(square)) if math.isfinite(float(square)) else float(square)
        clip_grads_with_norm_(list(self.parameters.values()), MAX_GRADIENT_NORM, torch.tensor(norm))
        return norm
