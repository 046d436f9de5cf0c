"""Forward and backward of one stage of a back end, with the other stages in other processes.

The schedules are those of `torch.distributed.pipelining`. All stages are given the same batches: the first one reads the
rows, each one the mask, the last one the labels. So nothing but rows and their gradients travels between stages, in shapes
that both ends know beforehand.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleavedZeroBubble

from sf_contract.activations import NO_TARGET
from sf_model.back import Segment
from sf_server.scale.stages import ScheduleKind, cut_to_fit
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.objective import judge

SHAPES_KEPT: Final = 8
"""Batch shapes whose receive buffers are kept."""

Schedule = Schedule1F1B | ScheduleInterleavedZeroBubble


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How a back end is spread.

    Attributes:
        index, stages: which stage this is, and of how many.
        schedule: the order of work.
        microbatches: parts of a batch that are under way at the same time, a multiple of `stages`.
        most_tokens: longest sequence the model takes.
    """

    index: int
    stages: int
    schedule: ScheduleKind
    microbatches: int
    most_tokens: int

    @property
    def is_first(self) -> bool:
        """True for the stage that reads the samples' rows."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """True for the stage that holds the head."""
        return self.index == self.stages - 1


class Pipeline:
    """One stage at work.

    Attributes:
        is_training: True during `backward`.

    Args:
        segment: the layers of this stage, with LoRA.
        settings: the same in all stages but for `index`.
        group: the stages' processes, in the order of stages.
        device: where the segment is.
    """

    def __init__(
        self, segment: Segment, settings: PipelineSettings, *, group: dist.ProcessGroup, device: torch.device
    ) -> None:
        self._segment = segment
        self._settings = settings
        self._group = group
        self._device = device
        self._rows_dtype = next(
            p.dtype for p in segment.model.parameters() if not p.requires_grad and p.is_floating_point()
        )
        self._schedules: OrderedDict[tuple[int, int], Schedule] = OrderedDict()
        self._batch: BatchTensors | None = None
        self._targets = 1
        self.is_training = False

    def backward(self, batch: BatchTensors) -> tuple[float, int]:
        """Add the gradient of the batch's mean loss to this stage's parameters; all stages call it with the same batch.

        Returns:
            The loss, 0 in all stages but the last, and the number of targets.
        """
        fitting = cut_to_fit(
            batch,
            self._segment.pad_side,
            microbatches=self._settings.microbatches,
            most_tokens=self._settings.most_tokens,
        )
        self._batch = fitting
        self._targets = max(int((batch.labels != NO_TARGET).sum()), 1)
        schedule = self._schedule(*fitting.mask.shape)
        losses: list[torch.Tensor] = []
        rows = (fitting.rows,) if self._settings.is_first else ()
        samples = torch.arange(len(fitting.mask), device=self._device) if self._settings.is_last else None
        self.is_training = True
        try:
            schedule.step(*rows, attention_mask=fitting.mask, target=samples, losses=losses, return_outputs=False)
        finally:
            self._batch = None
            self.is_training = False
        return float(torch.stack(losses).detach().sum()) if losses else 0.0, self._targets

    def answer(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits of a batch that has left the first stage as `rows`, for that stage; the others call `pass_on`."""
        self._send(rows)
        shape = torch.empty(3, dtype=torch.int64)
        last = self._settings.stages - 1
        dist.recv(shape, group=self._group, group_src=last)
        logits = torch.empty([size for size in shape.tolist() if size], device=self._device)
        dist.recv(logits, group=self._group, group_src=last)
        return logits

    @torch.no_grad()
    def pass_on(self, mask: torch.Tensor) -> None:
        """Compute this stage's layers for a batch that is scored, and send on what comes of it."""
        rows = torch.empty(*mask.shape, self._segment.hidden, dtype=self._rows_dtype, device=self._device)
        dist.recv(rows, group=self._group, group_src=self._settings.index - 1)
        out: torch.Tensor = self._segment(rows, mask.to(self._device))
        if not self._settings.is_last:
            self._send(out)
            return
        dist.send(torch.tensor([*out.shape, *[0] * (3 - out.ndim)]), group=self._group, group_dst=0)
        dist.send(out.float().contiguous(), group=self._group, group_dst=0)

    def _send(self, rows: torch.Tensor) -> None:
        dist.send(rows.detach().contiguous(), group=self._group, group_dst=self._settings.index + 1)

    def _schedule(self, samples: int, tokens: int) -> Schedule:
        """The schedule for a shape of batch; made anew, in all stages alike, when it was not needed lately."""
        key = (samples, tokens)
        if key not in self._schedules:
            self._schedules[key] = self._make_schedule(samples // self._settings.microbatches, tokens)
            if len(self._schedules) > SHAPES_KEPT:
                self._schedules.popitem(last=False)
        self._schedules.move_to_end(key)
        return self._schedules[key]

    def _make_schedule(self, samples: int, tokens: int) -> Schedule:
        settings = self._settings
        between = torch.empty(
            samples, tokens, self._segment.hidden, dtype=self._rows_dtype, device="meta", requires_grad=True
        )
        stage = PipelineStage(
            self._segment,
            settings.index,
            settings.stages,
            self._device,
            input_args=between,
            output_args=between,
            group=self._group,
        )
        loss = self._loss
        if settings.schedule is ScheduleKind.ONE_F_ONE_B:
            return Schedule1F1B(stage, settings.microbatches, loss_fn=loss, scale_grads=False)
        return ScheduleInterleavedZeroBubble([stage], settings.microbatches, loss_fn=loss, scale_grads=False)

    def _loss(self, logits: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """This micro-batch's part of the batch's mean loss; `samples` are numbers within the batch."""
        batch = self._batch
        if batch is None:
            raise RuntimeError("a stage computes a loss outside of a step")
        weights = None if batch.weights is None else batch.weights[samples]
        return judge(logits, batch.labels[samples], weights).loss_sum / self._targets
