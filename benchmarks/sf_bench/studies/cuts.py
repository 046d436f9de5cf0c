"""Mixed cuts: devices with different cuts in one run, against devices that all have the deepest of these cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from sf_bench.quality.dealing import deal_in_turn
from sf_bench.quality.fronts import bundle_rows
from sf_bench.quality.judging import Answered, adapted_back_end, answered, answered_whole, judged_rows, standalone
from sf_bench.quality.results import Effort, Evaluation, TrainingKey
from sf_bench.quality.server_run import RowsOf, Say, Sender
from sf_bench.studies.study import Opened, Study
from sf_contract.bundle import Bundle
from sf_contract.errors import UsageError
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings
from sf_server.store.stored import StoredSample

MIXED: Final = "mixed"
SINGLE: Final = "single"


class DeviceAnswers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device: what its own front end, its own rows on the wire and the adapter behind its own cut answer.

    Attributes:
        split_layer: its cut.
        stated_error: mean relative error of its bundle's rows at the cut, before the wire, as the bundle states it.
        answers: right or wrong.
        like_alone: part of the validation samples on which it answers as the adapter alone does in the whole fp32 model.
    """

    split_layer: int
    stated_error: float
    answers: Evaluation
    like_alone: float


class CutsCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way and seed; `alone` is the published adapter in the untouched whole model."""

    key: TrainingKey
    way: str
    seed: int
    devices: tuple[DeviceAnswers, ...]
    alone: Evaluation
    effort: Effort


class CutsStudy(Study[CutsCell]):
    """`mixed`: each device has one of the bundles. `single`: as many devices, all with the deepest cut."""

    ways = (MIXED, SINGLE)
    cell_kind = CutsCell

    def __init__(self, opened: Opened, say: Say) -> None:
        super().__init__(opened, say)
        cuts = [bundle.manifest.geometry.split_layer for bundle in opened.bundles]
        if len(set(cuts)) < 2 or len(set(cuts)) < len(cuts):
            raise UsageError(
                f"mixed cuts need bundles of different cuts, these have {', '.join(map(str, cuts))}",
                cure="export them together with sf-export --split-layer 2,4,8, and give each with --bundle",
            )
        self._fronts: dict[int, RowsOf] = {}
        self._judged: dict[int, list[list[StoredSample]]] = {}

    def key(self, way: str, seed: int) -> TrainingKey:
        """What decides a cell."""
        rows = [bundle.bundle_id for bundle in self._bundles(way)]
        return self.training_key(way, seed, rows=rows, holders=self._holders(seed), settings=self._settings(way, seed))

    def compute(self, way: str, seed: int, folder: RunFolder) -> CutsCell:
        """Train, then let every device and the adapter alone answer all validation samples."""
        say = self.tell(way, seed)
        bundles = self._bundles(way)
        senders = [
            Sender(name=f"device-{number}", bundle_id=bundle.bundle_id, rows_of=self._front(bundle))
            for number, bundle in enumerate(self._per_device(way))
        ]
        settings = self._settings(way, seed)
        effort, run = self.train_on_server(
            folder, settings, bundles=bundles, senders=senders, holders=self._holders(seed), say=say
        )
        say("judging")
        whole = standalone(self.opened.checkpoint, self.opened.deepest, run.adapter_path)
        samples = self.opened.phrases.validation
        alone = answered_whole(whole, samples)
        del whole
        cell = CutsCell(
            key=self.key(way, seed),
            way=way,
            seed=seed,
            devices=tuple(self._answers(bundle, run.adapter_path, alone) for bundle in bundles),
            alone=alone.evaluation,
            effort=effort,
        )
        say(
            "accuracy behind "
            + ", ".join(f"cut {one.split_layer} {one.answers.accuracy:.2%}" for one in cell.devices)
            + f", alone {alone.evaluation.accuracy:.2%}"
        )
        return cell

    def _answers(self, bundle: Bundle, adapter: Path, alone: Answered) -> DeviceAnswers:
        opened, manifest = self.opened, bundle.manifest
        back_end = adapted_back_end(opened.checkpoint, bundle, adapter, dtype=opened.dtype, device=opened.device)
        cut = manifest.geometry.split_layer
        if cut not in self._judged:
            self._judged[cut] = judged_rows(opened.phrases.validation, self._front(bundle))
        own = answered(back_end, self._judged[cut], device=opened.device)
        pairs = zip(own.answers, alone.answers, strict=True)
        return DeviceAnswers(
            split_layer=cut,
            stated_error=manifest.quantization.error.mean,
            answers=own.evaluation,
            like_alone=sum(ours == theirs for ours, theirs in pairs) / len(own.answers),
        )

    def _settings(self, way: str, seed: int) -> TrainSettings:
        return self.train_settings(seed, bundles=self._bundles(way), run=Path(self.opened.settings.work))

    def _bundles(self, way: str) -> tuple[Bundle, ...]:
        return self.opened.bundles if way == MIXED else (self.opened.deepest,)

    def _per_device(self, way: str) -> tuple[Bundle, ...]:
        opened = self.opened
        return opened.bundles if way == MIXED else (opened.deepest,) * len(opened.bundles)

    def _holders(self, seed: int) -> list[int]:
        return deal_in_turn(self.samples(seed), len(self.opened.bundles))

    def _front(self, bundle: Bundle) -> RowsOf:
        cut = bundle.manifest.geometry.split_layer
        if cut not in self._fronts:
            self._fronts[cut] = bundle_rows(bundle, threads=self.opened.settings.threads)
        return self._fronts[cut]
