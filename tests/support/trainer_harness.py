"""Trainers on a tiny model and a store of made-up samples, sharing a run folder as restarted processes do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch

from sf_contract.activations import EncodedSample
from sf_contract.codec import WireCodec, encode_rows
from sf_contract.manifest import Task
from sf_contract.messages import Role
from sf_model.back import BackEnd
from sf_model.checkpoint import load_model, open_checkpoint
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.feed import Fed, Feed
from sf_server.training.learner import Learner
from sf_server.training.lora import attach_lora, plan_lora
from sf_server.training.metrics import MetricsLog
from sf_server.training.trainer import Ending, Surroundings, Trainer

CUT: Final = 2
HIDDEN: Final = 72
BUNDLE: Final = "b" * 64
SAMPLES: Final = 50
EPOCHS: Final = 3


def made_samples(first: int, count: int, role: Role = Role.TRAIN) -> list[EncodedSample]:
    """Samples whose label can be learnt from their rows."""
    generator = np.random.default_rng(first)
    made = []
    for ordinal in range(first, first + count):
        label = ordinal % 2
        rows = generator.standard_normal((3 + ordinal % 5, HIDDEN)).astype(np.float32) + (2 * label - 1)
        made.append(EncodedSample(ordinal=ordinal, role=role, rows=encode_rows(rows, WireCodec.INT8), label=label))
    return made


def outbox_of(device: str) -> str:
    """The outbox of a device."""
    return device.encode().hex().ljust(32, "0")


def open_store(path: Path, *, devices: Sequence[str] = ("d",), max_bytes: int = 64 << 20) -> Store:
    """A new store that knows some devices."""
    store = Store.open(path, max_bytes=max_bytes)
    for device in devices:
        store.note_hello(
            device=device, outbox=outbox_of(device), bundle_id=BUNDLE, self_test_error=0.0, waiting_samples=0, now_s=0.0
        )
    return store


def add_samples(store: Store, samples: list[EncodedSample], device: str = "d") -> None:
    """Store samples of a device."""
    with store.commit():
        store.add(device=device, outbox=outbox_of(device), bundle_id=BUNDLE, samples=samples)


def build_learner(model: Path, *, dropout: float = 0.3) -> Learner:
    """A learner on a tiny model, always with the same weights."""
    loaded = load_model(
        open_checkpoint(str(model)), task=Task.TEXT_CLASSIFICATION, dtype=torch.float32, labels=("no", "yes")
    )
    back_end = BackEnd(loaded.model, CUT)
    plan = plan_lora(back_end, targets=(), rank=2, alpha=4, dropout=dropout, new_modules=loaded.new_modules)
    torch.manual_seed(0)
    attach_lora(back_end, plan, task=Task.TEXT_CLASSIFICATION, seed=0)
    return Learner(back_end, learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=0.01)


def train_settings(**changes: object) -> TrainSettings:
    """Small windows and batches, a checkpoint after every step."""
    options: dict[str, object] = {
        "bundle": "b", "run": "r", "expect_samples": SAMPLES, "epochs": EPOCHS, "batch_samples": 4,
        "window_samples": 16, "checkpoint_every_s": 1e-9, "warmup_steps": 3, "learning_rate": 1e-2,
    }  # fmt: skip
    return TrainSettings(**{**options, **changes})


class CountingFeed(Feed):
    """Counts how often each sample was trained on."""

    def __init__(self, store: Store, learner: Learner) -> None:
        super().__init__(store, learner.back_end, torch.device("cpu"))
        self.trained: Counter[int] = Counter()
        self.batches_trained: list[tuple[int, ...]] = []

    def batches(self, plan: Sequence[Sequence[int]]) -> Iterator[Fed]:
        for fed in super().batches(plan):
            yield fed
            # The next batch was asked for, so this one is done; when training stops before it, the generator ends above.
            self.trained.update(fed.seqs)
            self.batches_trained.append(tuple(fed.seqs))


class Harness:
    """Makes trainers that share a run folder, as restarted processes do."""

    def __init__(self, folder: Path, store: Store, model: Path, **settings: object) -> None:
        self.folder = folder
        self.store = store
        self.model = model
        self.settings = train_settings(**settings)
        self.said: list[str] = []
        self.logs: list[MetricsLog] = []
        folder.mkdir(exist_ok=True)

    def checkpoints(self) -> Checkpoints:
        """Of this run."""
        return Checkpoints(self.folder / "checkpoints", keep=self.settings.keep_checkpoints)

    def trainer(
        self,
        *,
        steps_until_stop: int | None = None,
        on_wait: Callable[[], object] | None = None,
        stopped: Callable[[], bool] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> Trainer:
        """A new trainer, not yet restored; `feed` counts what it trains on."""
        learner = build_learner(self.model)
        self.feed = CountingFeed(self.store, learner)
        newest = self.checkpoints().load_newest()
        log = MetricsLog(
            self.folder / "metrics.jsonl", after_step=newest.progress.step if newest else 0, say=self.said.append
        )
        self.logs.append(log)
        made: list[Trainer] = []

        def enough_steps() -> bool:
            return steps_until_stop is not None and made[0].progress.step >= steps_until_stop

        around = Surroundings(
            say=self.said.append,
            stopped=stopped or enough_steps,
            wait=lambda _: on_wait() if on_wait else pytest.fail("the trainer waits for samples that never come"),
            train_device=torch.device("cpu"),
            feed=self.feed,
            **({} if clock is None else {"clock": clock}),
        )
        made.append(
            Trainer(learner, self.store, self.settings, checkpoints=self.checkpoints(), metrics=log, around=around)
        )
        return made[0]

    def finish(self, trainer: Trainer) -> dict[str, torch.Tensor]:
        """Train to the end; the weights."""
        assert trainer.run() is Ending.DONE
        return weights_of(trainer)

    def metrics(self, kind: str = "step") -> list[dict[str, object]]:
        """Lines of the metrics file."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of what the trainer's learner has learnt."""
    return {name: parameter.detach().clone() for name, parameter in trainer._learner.parameters.items()}


def assert_same_weights(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
