"""What a study has opened and checked before anything is computed, and its cells: one for each way of training and seed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec
import torch

from sf_bench.quality.cells import Keyed, cell_path, finish_cell
from sf_bench.quality.jobs import run_in_processes
from sf_bench.quality.phrases import Phrases, Tokenization, read_phrases, read_problems
from sf_bench.quality.results import Effort, TrainingKey
from sf_bench.quality.server_run import Say, Sender, fill_store, make_run, train
from sf_bench.studies.settings import StudySettings
from sf_contract.bundle import Bundle, open_bundle
from sf_contract.errors import MismatchError, UsageError
from sf_contract.manifest import Task
from sf_contract.samples import TokenizedSample
from sf_contract.tokenizer import open_tokenizer
from sf_model.checkpoint import Checkpoint, check_same_base, open_checkpoint
from sf_server.pieces import choose_device
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings

CHECKPOINT_EVERY_S: Final = 120.0
FP32_ROWS: Final = ("fp32",)
_DECIDING: Final = (
    "expect_samples", "epochs", "batch_samples", "batch_tokens", "window_samples", "seed", "balance", "pool",
    "learning_rate", "head_learning_rate", "warmup_steps", "weight_decay", "dtype",
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_first_layer",
)  # fmt: skip
"""Settings of the training that change its result; the rest of them does not, or is the same in every study."""


CellT = TypeVar("CellT", bound=Keyed)


@dataclass(frozen=True, slots=True)
class Opened:
    """Bundles of one base model and task, shallowest cut first, the base model, and the samples.

    Attributes:
        device: where models compute.
    """

    settings: StudySettings
    bundles: tuple[Bundle, ...]
    checkpoint: Checkpoint
    phrases: Phrases
    device: torch.device

    @property
    def deepest(self) -> Bundle:
        """The bundle with the deepest cut."""
        return self.bundles[-1]

    @property
    def first_layer(self) -> int:
        """The first layer with LoRA, in every way of training."""
        return self.deepest.manifest.geometry.split_layer

    @property
    def dtype(self) -> torch.dtype:
        """Of the server's frozen weights."""
        return torch.bfloat16 if self.settings.dtype == "bf16" else torch.float32


class Study(ABC, Generic[CellT]):
    """Ways of training, compared.

    Attributes:
        ways: their names, in the order of the report.
        cell_kind: what a cell is.
    """

    ways: tuple[str, ...]
    cell_kind: type[CellT]

    def __init__(self, opened: Opened, say: Say) -> None:
        self.opened = opened
        self._say = say

    @abstractmethod
    def key(self, way: str, seed: int) -> TrainingKey:
        """What decides a cell."""

    @abstractmethod
    def compute(self, way: str, seed: int, folder: RunFolder) -> CellT:
        """Train and judge; the folder holds what an interruption left."""

    def cell(self, way: str, seed: int) -> CellT:
        """The cell, computed unless it was before; raises as `finish_cell` does."""
        path = cell_path(Path(self.opened.settings.work), way, seed)
        return finish_cell(path, self.key(way, seed), self.cell_kind, lambda folder: self.compute(way, seed, folder))

    def cells(self) -> dict[str, list[CellT]]:
        """All that are asked for, one list per way, in the order of the seeds; missing ones are computed, `jobs` at a time."""
        settings = self.opened.settings
        ways = chosen_ways(self.ways, settings.ways)
        if settings.jobs > 1:
            replaced = msgspec.structs.replace
            parts = [
                Part(study=type(self).__name__, settings=replaced(settings, ways=(way,), seeds=(seed,), jobs=1))
                for seed in settings.seeds
                for way in ways
            ]
            run_in_processes("sf_bench.studies.process", parts, jobs=settings.jobs, threads=settings.threads)
        return {way: [self.cell(way, seed) for seed in settings.seeds] for way in ways}

    def samples(self, seed: int) -> list[TokenizedSample]:
        """The training samples of a seed, in the order they arrive."""
        return self.opened.phrases.drawn(self.opened.settings.samples, seed=seed)

    def tell(self, way: str, seed: int) -> Say:
        """Says things about one cell."""
        return lambda text: self._say(f"{way}, seed {seed}: {text}")

    def training_key(
        self, way: str, seed: int, *, rows: Sequence[str], holders: Sequence[int], settings: TrainSettings
    ) -> TrainingKey:
        """The key of a cell that is trained with these settings."""
        samples = self.samples(seed)
        return TrainingKey(
            way=way,
            rows=tuple(rows),
            base_weights_sha256=self.opened.checkpoint.identity.weights_sha256,
            inputs_sha256=self.opened.phrases.digest(samples),
            holders_sha256=hashlib.sha256(msgspec.json.encode(list(holders))).hexdigest(),
            training={name: msgspec.json.encode(getattr(settings, name)).decode() for name in _DECIDING},
        )

    def train_settings(self, seed: int, *, bundles: Sequence[Bundle], run: Path, pool: bool = True) -> TrainSettings:
        """Settings of the server's trainer: its defaults, but for what the study is told."""
        settings = self.opened.settings
        return TrainSettings(
            bundle=tuple(str(bundle.folder.resolve()) for bundle in bundles),
            run=str(run),
            model=str(self.opened.checkpoint.folder) if settings.model is None else settings.model,
            expect_samples=settings.samples,
            epochs=settings.epochs,
            batch_samples=settings.batch_samples,
            learning_rate=settings.learning_rate,
            head_learning_rate=settings.head_learning_rate,
            lora_rank=settings.lora_rank,
            lora_first_layer=self.opened.first_layer,
            dtype=settings.dtype,
            pool=pool,
            seed=seed,
            threads=settings.threads,
            checkpoint_every_s=CHECKPOINT_EVERY_S,
            validate=False,
        )

    def train_on_server(
        self, folder: RunFolder, settings: TrainSettings, *, bundles: Sequence[Bundle], senders: Sequence[Sender],
        holders: Sequence[int], say: Say
    ) -> tuple[Effort, RunFolder]:  # fmt: skip
        """The server's own trainer on what these devices would have sent; an interrupted training goes on."""
        settings = msgspec.structs.replace(settings, run=str(folder.path / "run"))
        run = make_run(folder.path / "run", settings, bundles=bundles)
        samples = self.samples(settings.seed)
        fill_store(run.store_path, samples, senders=senders, holders=holders, say=say)
        say(f"training on {len(samples)} samples")
        return train(run, say=say), run


class Part(msgspec.Struct, frozen=True):
    """What a process of its own computes."""

    study: str
    settings: StudySettings


def open_study(settings: StudySettings, *, task: Task, say: Say) -> Opened:
    """Open bundles, base model and data, and check that they belong together.

    Raises:
        UsageError, BundleError, MismatchError, ModelError, DataError: as opening and comparing them finds.
    """
    torch.set_num_threads(settings.threads)
    bundles = sorted(
        (open_bundle(Path(folder)) for folder in settings.bundle), key=lambda b: b.manifest.geometry.split_layer
    )
    check_one_task(bundles, task)
    base = bundles[0].manifest.base_model
    if settings.model is None and base.revision is None:
        raise UsageError(f"the bundle was made from the local model {base.name}", cure="say where it is with --model")
    source = settings.model or base.name
    checkpoint = open_checkpoint(source, revision=base.revision if source == base.name else None, say=say)
    for bundle in bundles:
        check_same_base(checkpoint, bundle.manifest.base_model)
    return Opened(
        settings=settings,
        bundles=tuple(bundles),
        checkpoint=checkpoint,
        phrases=_read(settings, bundles).judged_by(settings.validation_samples),
        device=choose_device("cpu"),
    )


def check_one_task(bundles: Sequence[Bundle], task: Task) -> None:
    """Refuse bundles that turn the same text into other samples.

    Raises:
        UsageError: another task than the study is about.
        MismatchError: other labels, template or tokenizer than the first.
    """
    first = bundles[0]
    if first.manifest.task.task is not task:
        raise UsageError(
            f"{first.folder} is a bundle for {first.manifest.task.task.value}, and this study is about {task.value}",
            cure=f"export one with --task {task.value}",
        )
    for bundle in bundles[1:]:
        same = bundle.manifest.task == first.manifest.task and _tokenizer_of(bundle) == _tokenizer_of(first)
        if not same:
            raise MismatchError(
                f"{bundle.folder} and {first.folder} differ in task, labels, template or tokenizer",
                cure="export them together: sf-export --split-layer 2,4,8",
            )


def chosen_ways(ways: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Those wanted, all when none are named.

    Raises:
        UsageError: one does not exist.
    """
    unknown = [way for way in wanted if way not in ways]
    if unknown:
        raise UsageError(f"there is no way of training called {unknown[0]!r}", cure=f"choose from: {', '.join(ways)}")
    return tuple(way for way in ways if not wanted or way in wanted)


def _read(settings: StudySettings, bundles: Sequence[Bundle]) -> Phrases:
    spec = bundles[0].manifest.task
    how = Tokenization(
        spec=spec,
        tokenizer=open_tokenizer(bundles[0]),
        max_tokens=min(bundle.manifest.geometry.max_tokens for bundle in bundles),
    )
    train_file, validation = Path(settings.train), Path(settings.validation)
    if spec.task is Task.CAUSAL_LM:
        return read_problems(train_file, validation, how=how, max_tokens=settings.max_phrase_tokens)
    return read_phrases(train_file, validation, how=how, max_phrase_tokens=settings.max_phrase_tokens)


def _tokenizer_of(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return next(file.sha256 for file in manifest.files if file.name == manifest.tokenizer_file)
