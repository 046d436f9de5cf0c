"""Completions: causal language modelling behind a cut against centralised LoRA; greedy answers against the merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from sf_bench.quality.fronts import bundle_rows
from sf_bench.quality.judging import (
    adapted_back_end,
    completion_loss,
    judged_rows,
    standalone,
    whole_completion_loss,
)
from sf_bench.quality.results import CompletionLoss, Effort, TrainingKey
from sf_bench.quality.server_run import RowsOf, Say, Sender
from sf_bench.studies.answers import Answers, compare_answers, prompts_of
from sf_bench.studies.control import train_control
from sf_bench.studies.study import FP32_ROWS, Opened, Study
from sf_contract.errors import UsageError
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings

SPLIT: Final = "split"
CENTRAL: Final = "central"
NAMES: Final = ("device-0", "device-1", "device-2", "device-3")


class CompletionsCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way and seed.

    Attributes:
        own: loss of the held-out completions. Split: behind the bundle's front end. Central: in the whole model.
        alone: the same with the adapter in the untouched whole fp32 model. Central: the same as `own`.
        answers: greedy answers to held-out prompts, against the merged model; split only.
    """

    key: TrainingKey
    way: str
    seed: int
    own: CompletionLoss
    alone: CompletionLoss
    answers: Answers | None
    effort: Effort


class CompletionsStudy(Study[CompletionsCell]):
    """`split`: the server's trainer on rows of four devices. `central`: everything in one place."""

    ways = (SPLIT, CENTRAL)
    cell_kind = CompletionsCell

    def __init__(self, opened: Opened, say: Say) -> None:
        super().__init__(opened, say)
        if len(opened.bundles) > 1:
            raise UsageError("completions are compared behind one cut", cure="give a single --bundle")
        self._front: RowsOf | None = None

    def key(self, way: str, seed: int) -> TrainingKey:
        """What decides a cell."""
        rows = FP32_ROWS if way == CENTRAL else [self.opened.deepest.bundle_id]
        return self.training_key(way, seed, rows=rows, holders=self._holders(seed), settings=self._settings(seed))

    def compute(self, way: str, seed: int, folder: RunFolder) -> CompletionsCell:
        """Train and judge."""
        say = self.tell(way, seed)
        cell = self._central(seed, say) if way == CENTRAL else self._split(seed, folder, say)
        say(f"loss of held-out completions {cell.own.loss:.4f}, the adapter alone {cell.alone.loss:.4f}")
        return cell

    def _central(self, seed: int, say: Say) -> CompletionsCell:
        opened = self.opened
        model, effort = train_control(
            opened, self.samples(seed), self._settings(seed), names=NAMES, holders=self._holders(seed), say=say
        )
        found = whole_completion_loss(model, opened.phrases.validation)
        return CompletionsCell(
            key=self.key(CENTRAL, seed), way=CENTRAL, seed=seed, own=found, alone=found, answers=None, effort=effort
        )

    def _split(self, seed: int, folder: RunFolder, say: Say) -> CompletionsCell:
        opened, bundle = self.opened, self.opened.deepest
        senders = [Sender(name=name, bundle_id=bundle.bundle_id, rows_of=self._rows()) for name in NAMES]
        effort, run = self.train_on_server(
            folder, self._settings(seed), bundles=[bundle], senders=senders, holders=self._holders(seed), say=say
        )
        say("judging")
        validation = opened.phrases.validation
        back_end = adapted_back_end(
            opened.checkpoint, bundle, run.adapter_path, dtype=opened.dtype, device=opened.device
        )
        own = completion_loss(back_end, judged_rows(validation, self._rows()), device=opened.device)
        alone = whole_completion_loss(standalone(opened.checkpoint, bundle, run.adapter_path), validation)
        return CompletionsCell(
            key=self.key(SPLIT, seed),
            way=SPLIT,
            seed=seed,
            own=own,
            alone=alone,
            answers=self._answers(run, say),
            effort=effort,
        )

    def _answers(self, run: RunFolder, say: Say) -> Answers | None:
        settings = self.opened.settings
        if not settings.prompts:
            return None
        say(f"answering {settings.prompts} prompts")
        prompts = prompts_of(self.opened.phrases.validation, settings.prompts)
        return compare_answers(self.opened, run, prompts, rows_of=self._rows())

    def _settings(self, seed: int) -> TrainSettings:
        return self.train_settings(seed, bundles=[self.opened.deepest], run=Path(self.opened.settings.work))

    def _holders(self, seed: int) -> list[int]:
        return [index % len(NAMES) for index in range(len(self.samples(seed)))]

    def _rows(self) -> RowsOf:
        if self._front is None:
            self._front = bundle_rows(self.opened.deepest, threads=self.opened.settings.threads)
        return self._front
