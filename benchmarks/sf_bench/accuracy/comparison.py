"""Accuracy after training on the rows of quantized front ends, against training on fp32 rows: a paired comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import torch

from sf_bench.accuracy.cell import Arm, CellRunner
from sf_bench.accuracy.report import Report, pairs_of, summarize_arm
from sf_bench.accuracy.results import FP32, Cell, CellKey
from sf_bench.accuracy.settings import AccuracySettings
from sf_bench.quality.jobs import run_in_processes
from sf_bench.quality.phrases import Phrases, Tokenization, read_phrases
from sf_bench.quality.server_run import Say
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.errors import MismatchError, UsageError
from sf_contract.manifest import Task
from sf_contract.tokenizer import open_tokenizer
from sf_model.checkpoint import Checkpoint, check_same_base, open_checkpoint
from sf_server.pieces import choose_device, choose_dtype
from sf_server.results.text_front import FrontKind
from sf_server.settings import TrainSettings

CHECKPOINT_EVERY_S: Final = 120.0
_DECIDING_SETTINGS: Final = (
    "expect_samples",
    "epochs",
    "batch_samples",
    "batch_tokens",
    "window_samples",
    "learning_rate",
    "head_learning_rate",
    "warmup_steps",
    "weight_decay",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
)
"""Settings of the training that change its result; the rest of them does not, or is the same in every comparison."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything opened and checked; nothing computed yet.

    Attributes:
        arms: by name, the fp32 arm first.
    """

    settings: AccuracySettings
    checkpoint: Checkpoint
    arms: Mapping[str, Arm]
    phrases: Phrases

    def key(self, arm: Arm, seed: int) -> CellKey:
        """What decides the result of a cell."""
        training = self._training(arm)
        device = choose_device(training.device)
        return CellKey(
            rows=arm.rows,
            base_weights_sha256=self.checkpoint.identity.weights_sha256,
            split_layer=arm.bundle.manifest.geometry.split_layer,
            inputs_sha256=self.phrases.digest(self.phrases.drawn(self.settings.samples, seed=seed)),
            training={
                **{name: getattr(training, name) for name in _DECIDING_SETTINGS},
                "seed": seed,
                "dtype": str(choose_dtype(training.dtype, device)).removeprefix("torch."),
            },
        )

    def runner(self, arm: Arm, say: Say) -> CellRunner:
        """Computes the arm's cells."""
        return CellRunner(
            arm,
            checkpoint=self.checkpoint,
            settings=self._training(arm),
            work=Path(self.settings.work),
            validation=self.phrases.validation,
            fp32_rows=self.settings.fp32_rows,
            say=say,
        )

    def run_arm(self, arm: Arm, say: Say) -> list[Cell]:
        """The arm's cells, one per seed."""
        runner = self.runner(arm, say)
        return [
            runner.run(self.key(arm, seed), self.phrases.drawn(self.settings.samples, seed=seed), seed=seed)
            for seed in self.settings.seeds
        ]

    def report(self, cells: Mapping[str, Sequence[Cell]]) -> Report:
        """What the cells of some arms say."""
        labels = Counter(sample.label for sample in self.phrases.validation)
        some = next(iter(cells.values()))
        return Report(
            samples=self.settings.samples,
            seeds=self.settings.seeds,
            epochs=self.settings.epochs,
            tokens=tuple(cell.tokens for cell in some),
            validation=len(self.phrases.validation),
            floor=max(labels.values()) / len(self.phrases.validation),
            pool=self.phrases.counts,
            arms=tuple(summarize_arm(of_arm) for of_arm in cells.values()),
            pairs=pairs_of(cells),
        )

    def _training(self, arm: Arm) -> TrainSettings:
        settings = self.settings
        return TrainSettings(
            bundle=str(arm.bundle.folder),
            run=settings.work,
            model=settings.model,
            expect_samples=settings.samples,
            epochs=settings.epochs,
            batch_samples=settings.batch_samples,
            learning_rate=settings.learning_rate,
            checkpoint_every_s=CHECKPOINT_EVERY_S,
            threads=settings.threads,
            validate=False,
        )


def run_comparison(settings: AccuracySettings, *, say: Say) -> Report:
    """Compute what is not computed yet, and compare.

    Raises:
        UsageError, BundleError, MismatchError, ModelError, DataError: what was given cannot be used or compared.
        TrainingFailed: a child process ended with an error, which it has told itself.
    """
    comparison = open_comparison(settings, say=say)
    arms = list(comparison.arms.values())
    if settings.jobs > 1:
        _run_in_children(settings, [arm.name for arm in arms])
    return comparison.report({arm.name: comparison.run_arm(arm, say) for arm in arms})


def open_comparison(settings: AccuracySettings, *, say: Say) -> Comparison:
    """Open bundles, base model and data, and check that they belong together; raises as `run_comparison` does."""
    torch.set_num_threads(settings.threads)
    bundles = [open_bundle(Path(folder)) for folder in settings.bundle]
    arms = choose_arms(bundles, wanted=settings.arms)
    checkpoint = _open_model(settings.model, bundles[0], say)
    check_comparable(bundles, checkpoint)
    manifest = bundles[0].manifest
    how = Tokenization(
        spec=manifest.task,
        tokenizer=open_tokenizer(bundles[0]),
        max_tokens=min(bundle.manifest.geometry.max_tokens for bundle in bundles),
    )
    phrases = read_phrases(
        Path(settings.train), Path(settings.validation), how=how, max_phrase_tokens=settings.max_phrase_tokens
    )
    return Comparison(settings=settings, checkpoint=checkpoint, arms=arms, phrases=phrases)


def choose_arms(bundles: Sequence[Bundle], *, wanted: Sequence[str]) -> dict[str, Arm]:
    """The fp32 arm and one per bundle, named after its folder; only those wanted when any are named.

    Raises:
        UsageError: two folders have the same name, one cannot be a name, or an arm is wanted that does not exist.
    """
    arms = {FP32: Arm(name=FP32, kind=FrontKind.FP32, bundle=bundles[0])}
    for bundle in bundles:
        name = bundle.folder.resolve().name
        if name in arms:
            raise UsageError(
                f"there are two arms called {name!r}: arms are named after the bundles' folders, and fp32 is the reference",
                cure="give the folders different names",
            )
        arms[name] = Arm(name=name, kind=FrontKind.BUNDLE, bundle=bundle)
    unknown = [name for name in wanted if name not in arms]
    if unknown:
        raise UsageError(f"there is no arm {unknown[0]!r}", cure=f"choose from: {', '.join(arms)}")
    return {name: arm for name, arm in arms.items() if not wanted or name in wanted}


def check_comparable(bundles: Sequence[Bundle], checkpoint: Checkpoint) -> None:
    """Refuse bundles that differ in more than how they compute and encode the same rows.

    Raises:
        UsageError: the task is not classification.
        MismatchError: another base model, cut, task or tokenizer.
    """
    first = bundles[0].manifest
    if first.task.task is not Task.TEXT_CLASSIFICATION:
        raise UsageError(
            f"{bundles[0].folder} is a bundle for {first.task.task.value}; accuracy is measured for classification",
            cure="export with --labels",
        )
    for bundle in bundles:
        manifest = bundle.manifest
        check_same_base(checkpoint, manifest.base_model)
        differing = {
            "cut": manifest.geometry.split_layer != first.geometry.split_layer,
            "task, template or labels": manifest.task != first.task,
            "tokenizer": _tokenizer_sha256(bundle) != _tokenizer_sha256(bundles[0]),
        }
        for name in (name for name, differs in differing.items() if differs):
            raise MismatchError(
                f"{bundle.folder} and {bundles[0].folder} differ in their {name}, so their results cannot be compared",
                cure="export both from the same model with the same --split-layer, --labels and --template",
            )


def _tokenizer_sha256(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return next(file.sha256 for file in manifest.files if file.name == manifest.tokenizer_file)


def _open_model(given: str | None, bundle: Bundle, say: Say) -> Checkpoint:
    base = bundle.manifest.base_model
    if given is None and base.revision is None:
        raise UsageError(
            f"{bundle.folder} was made from the local model {base.name}", cure="say where it is with --model"
        )
    source = given or base.name
    return open_checkpoint(source, revision=base.revision if source == base.name else None, say=say)


def _run_in_children(settings: AccuracySettings, names: Sequence[str]) -> None:
    """Each arm in a process of its own, `jobs` at a time; afterwards all cells are on disk."""
    parts = [msgspec.structs.replace(settings, arms=(name,), jobs=1) for name in names]
    run_in_processes("sf_bench.accuracy.process", parts, jobs=settings.jobs, threads=settings.threads)
