"""Our contestants: samples from the store, or lifted ones, through the feed into the learner, as `sf-server train` does it.

Left out are what the training loop does around a step: its metrics log and its checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from sf_bench.training.base import Base
from sf_bench.training.meter import Meter
from sf_bench.training.profiling import profile_of
from sf_bench.training.protocol import Ready, Reply
from sf_bench.training.workload import lifts_of, load_workload, open_lifted, open_store
from sf_model.back import BackEnd
from sf_server.training.feed import Feed, SampleSource
from sf_server.training.learner import Learner
from sf_server.training.lift import Lifter
from sf_server.training.lora import attach_lora, plan_lora
from sf_server.training.speed import speed_up


class SplitTraining:
    """A back end that learns from samples.

    Args:
        lifted: read lifted samples, and enter the model at the first layer with LoRA.
    """

    def __init__(self, base: Base, *, lifted: bool) -> None:
        self._base, self._workload = base, load_workload(base)
        self._open = ExitStack()
        loaded = base.load()
        open_source = self._lifted_source(loaded.model) if lifted else lambda: open_store(base)
        first = (base.settings.lora_first_layer or base.split_layer) if lifted else base.split_layer
        back_end = BackEnd(loaded.model, first)
        plan = plan_lora(
            back_end,
            targets=(),
            rank=base.settings.lora_rank,
            alpha=2 * base.settings.lora_rank,
            dropout=0.0,
            new_modules=loaded.new_modules,
        )
        attach_lora(back_end, plan, task=base.task, seed=base.settings.seed)
        back_end.to(base.device)
        settings = base.settings
        speedups = speed_up(
            back_end, gradient_checkpointing=settings.gradient_checkpointing, compile_blocks=settings.compile
        )
        self._learner = Learner(
            back_end,
            learning_rate=3e-4,
            head_learning_rate=1e-3,
            weight_decay=0.01,
            micro_batch_tokens=settings.micro_batch_tokens,
        )
        source = self._open.enter_context(open_source())
        self._feed = Feed(source, back_end, base.device, prefetch=settings.prefetch, open_source=open_source)
        self._ready = Ready(
            says=f"layers {first}-{back_end.layers - 1} on {'lifted rows' if lifted else 'rows from the store'}; "
            f"{'no padding computed' if speedups.packed else 'padding computed'}, {speedups.fused} projections fused with LoRA",
            layers=back_end.layers - first,
            learning=sum(parameter.numel() for parameter in self._learner.parameters.values()),
        )

    def serve(self, requests: Iterator[str], reply: Callable[[Reply], None]) -> None:
        """Take turns until nobody asks any more."""
        meter = Meter(self._base.device)
        size, turn = self._base.settings.steps, 0
        reply(self._ready)
        with self._open:
            for request in requests:
                batches = self._workload.batches[turn * size : (turn + 1) * size]
                if request.strip() == "profile":
                    rank, vocabulary = self._base.settings.lora_rank, self._base.vocabulary
                    reply(profile_of(lambda: self._train(batches), rank=rank, vocabulary=vocabulary))  # noqa: B023
                    continue
                meter.start()
                losses = self._train(batches)
                reply(meter.finish(tokens=sum(map(self._workload.tokens, batches)), losses=losses))
                turn = (turn + 1) % (len(self._workload.batches) // size)

    def _train(self, batches: Sequence[Sequence[int]]) -> list[float]:
        plan = [[number + 1 for number in batch] for batch in batches]
        return [self._learner.step(fed.tensors, rate_factor=1.0).loss for fed in self._feed.batches(plan)]

    def _lifted_source(self, model: torch.nn.Module) -> Callable[[], AbstractContextManager[SampleSource]]:
        base = self._base
        lifts = lifts_of(base, model)
        if lifts is None:
            return lambda: open_store(base)
        lifted = self._open.enter_context(open_lifted(base, lifts))
        # The layers below are of no more use: everything is lifted.
        lifts.segments[base.split_layer].model.to("meta")

        @contextmanager
        def opened() -> Iterator[SampleSource]:
            with open_store(base) as store:
                yield Lifter(lifts, lifted, store, device=base.device, say=lambda _: None).source(store)

        return opened
