"""One class per device: pooled by the server, against the same samples in one place, and against devices kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from torch import nn

from sf_bench.quality.dealing import deal_by_class
from sf_bench.quality.fronts import bundle_rows
from sf_bench.quality.judging import adapted_back_end, evaluate, evaluate_whole, judged_rows, standalone
from sf_bench.quality.results import Effort, Evaluation, TrainingKey
from sf_bench.quality.server_run import RowsOf, Say, Sender
from sf_bench.studies.control import train_control
from sf_bench.studies.study import FP32_ROWS, Opened, Study
from sf_contract.errors import UsageError
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings
from sf_server.store.stored import StoredSample

POOLED: Final = "pooled"
CENTRAL: Final = "central"
APART: Final = "no-pool"


class OneClassCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way and seed.

    Attributes:
        own: the server's ways: behind the bundle's front end, as devices are answered. Central: the whole model.
        alone: the adapter in the untouched whole fp32 model. Central: the same as `own`.
    """

    key: TrainingKey
    way: str
    seed: int
    own: Evaluation
    alone: Evaluation
    effort: Effort


class OneClassStudy(Study[OneClassCell]):
    """`pooled` and `no-pool`: the server's trainer, with and without pooling. `central`: everything in one place."""

    ways = (POOLED, CENTRAL, APART)
    cell_kind = OneClassCell

    def __init__(self, opened: Opened, say: Say) -> None:
        super().__init__(opened, say)
        if len(opened.bundles) > 1:
            raise UsageError("one class per device is about one bundle", cure="give a single --bundle")
        self._classes = len(opened.deepest.manifest.task.labels)
        if opened.settings.devices % self._classes:
            raise UsageError(
                f"{opened.settings.devices} devices cannot be divided among {self._classes} classes",
                cure="give a multiple of the classes as --devices",
            )
        self._front: RowsOf | None = None
        self._judged: list[list[StoredSample]] = []

    def key(self, way: str, seed: int) -> TrainingKey:
        """What decides a cell."""
        rows = FP32_ROWS if way == CENTRAL else [self.opened.deepest.bundle_id]
        return self.training_key(way, seed, rows=rows, holders=self._holders(seed), settings=self._settings(way, seed))

    def compute(self, way: str, seed: int, folder: RunFolder) -> OneClassCell:
        """Train and judge."""
        say = self.tell(way, seed)
        cell = self._central(seed, say) if way == CENTRAL else self._on_server(way, seed, folder, say)
        say(f"accuracy {cell.own.accuracy:.2%}, the adapter alone {cell.alone.accuracy:.2%}")
        return cell

    def _central(self, seed: int, say: Say) -> OneClassCell:
        settings = self._settings(CENTRAL, seed)
        model, effort = train_control(
            self.opened, self.samples(seed), settings, names=self._names(), holders=self._holders(seed), say=say
        )
        found = evaluate_whole(model, self.opened.phrases.validation)
        return self._cell(CENTRAL, seed, own=found, alone=found, effort=effort)

    def _on_server(self, way: str, seed: int, folder: RunFolder, say: Say) -> OneClassCell:
        opened, bundle = self.opened, self.opened.deepest
        senders = [Sender(name=name, bundle_id=bundle.bundle_id, rows_of=self._rows()) for name in self._names()]
        effort, run = self.train_on_server(
            folder,
            self._settings(way, seed),
            bundles=[bundle],
            senders=senders,
            holders=self._holders(seed),
            say=say,
        )
        say("judging")
        back_end = adapted_back_end(
            opened.checkpoint, bundle, run.adapter_path, dtype=opened.dtype, device=opened.device
        )
        self._judged = self._judged or judged_rows(opened.phrases.validation, self._rows())
        own = evaluate(back_end, self._judged, device=opened.device)
        whole: nn.Module = standalone(opened.checkpoint, bundle, run.adapter_path)
        return self._cell(way, seed, own=own, alone=evaluate_whole(whole, opened.phrases.validation), effort=effort)

    def _cell(self, way: str, seed: int, *, own: Evaluation, alone: Evaluation, effort: Effort) -> OneClassCell:
        return OneClassCell(key=self.key(way, seed), way=way, seed=seed, own=own, alone=alone, effort=effort)

    def _settings(self, way: str, seed: int) -> TrainSettings:
        opened = self.opened
        return self.train_settings(seed, bundles=[opened.deepest], run=Path(opened.settings.work), pool=way != APART)

    def _names(self) -> list[str]:
        """Neighbours in the order of names have different classes, so without pooling the classes take turns."""
        return [f"device-{number:03}" for number in range(self.opened.settings.devices)]

    def _holders(self, seed: int) -> list[int]:
        return deal_by_class(self.samples(seed), self.opened.settings.devices, classes=self._classes)

    def _rows(self) -> RowsOf:
        if self._front is None:
            self._front = bundle_rows(self.opened.deepest, threads=self.opened.settings.threads)
        return self._front
