"""Devices with unlike cuts train one adapter, and it computes in the whole model what the trainer computed for each of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sf_contract.activations import NO_TARGET, EncodedSample
from sf_contract.codec import EncodedRows, WireCodec, decode_rows
from sf_contract.errors import MismatchError
from sf_contract.manifest import Task
from sf_contract.messages import Role
from sf_model.back import BackEnd
from sf_model.checkpoint import load_model, open_checkpoint
from sf_model.front import cut_front
from sf_model.taking_apart import sharing_weights
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.training import lift
from sf_server.training.batch_tensors import decode_to_tensor
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.feed import Feed
from sf_server.training.learner import Learner
from sf_server.training.lift import LiftedSource, Lifter, make_lifts
from sf_server.training.lifted import LiftedFile, LiftedIdentity
from sf_server.training.lifting import dtype_name
from sf_server.training.lora import attach_lora, plan_lora, save_adapter
from sf_server.training.metrics import MetricsLog
from sf_server.training.trainer import Ending, Surroundings, Trainer
from support.tiny_models import HIDDEN, VOCABULARY
from support.tolerances import FP32_RELATIVE

CUTS = (1, 2, 3)
LABELS = ("no", "yes", "maybe")
EACH = 8
"""Samples of each device."""

CASES = [
    ("llama", Task.CAUSAL_LM),
    ("gpt2", Task.TEXT_CLASSIFICATION),
    ("bert", Task.TEXT_CLASSIFICATION),
]


def _bundle(cut: int) -> str:
    return f"{cut:064x}"


def _ids(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(3, VOCABULARY, (4 + number % 5,), generator=generator)


def _load(folder: Path, task: Task, dtype: torch.dtype = torch.float32):
    labels = LABELS if task is Task.TEXT_CLASSIFICATION else ()
    return load_model(open_checkpoint(str(folder)), task=task, dtype=dtype, labels=labels, seed=3)


@torch.no_grad()
def _fill(store: Store, folder: Path, task: Task, cuts: tuple[int, ...]) -> None:
    """One device for each cut; samples arrive in turns, so that `seq` 1, 2, 3 are of the first, second, third device."""
    model = _load(folder, task).model
    fronts = [cut_front(model, cut) for cut in cuts]
    for place, cut in enumerate(cuts):
        store.note_hello(
            device=f"d{place}", outbox=f"{place:032x}", bundle_id=_bundle(cut), self_test_error=0.0, waiting_samples=0,
            now_s=0.0,
        )  # fmt: skip
    with store.commit():
        for number in range(EACH * len(cuts)):
            ordinal, place = divmod(number, len(cuts))
            ids = _ids(number)
            rows = fronts[place](ids[None], torch.ones_like(ids)[None])[0].numpy()
            encoded = EncodedRows(codec=WireCodec.FP32, rows=rows, scales=np.zeros((len(rows), 0), dtype=np.float32))
            targets = None
            if task is Task.CAUSAL_LM:
                targets = np.array([NO_TARGET, *ids[2:].tolist(), NO_TARGET], dtype=np.int32)
            sample = EncodedSample(
                ordinal=ordinal, role=Role.TRAIN, rows=encoded, label=None if targets is not None else number % 3,
                targets=targets,
            )  # fmt: skip
            store.add(device=f"d{place}", outbox=f"{place:032x}", bundle_id=_bundle(cuts[place]), samples=[sample])


@dataclass
class Run:
    """A trainer with everything around it, on a store of devices with these cuts."""

    folder: Path
    model: Path
    task: Task
    cuts: tuple[int, ...]
    layer: int
    dtype: torch.dtype = torch.float32

    def open(self, stack: ExitStack, *, stopped: Callable[[], bool] = lambda: False) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "store.sqlite"
        is_new = not path.exists()
        self.store = stack.enter_context(Store.open(path, max_bytes=64 << 20))
        if is_new:
            _fill(self.store, self.model, self.task, self.cuts)
        loaded = _load(self.model, self.task, self.dtype)
        cuts = {_bundle(cut): cut for cut in self.cuts}
        cpu = torch.device("cpu")
        lifts = make_lifts(loaded.model, cuts=cuts, layer=self.layer, device=cpu)
        self.back_end = BackEnd(loaded.model, self.layer)
        self.new_modules = loaded.new_modules
        self.source: Store | LiftedSource = self.store
        self.prepare: Callable[..., object] = len
        if lifts is not None:
            identity = LiftedIdentity("w", "c", self.layer, HIDDEN, dtype_name(lifts.dtype()))
            lifted = stack.enter_context(LiftedFile.open(self.folder / "lifted.sqlite", identity, say=print))
            lifter = Lifter(lifts, lifted, self.store, device=cpu, say=print, stopped=stopped)
            self.source, self.prepare = lifter.source(self.store), lifter.prepare

    def rows(self) -> list[torch.Tensor]:
        """All samples as they enter the back end, by `seq`."""
        infos = self.store.sample_infos(role=Role.TRAIN)
        self.prepare(infos)
        return [decode_to_tensor(sample.rows) for sample in self.source.load([info.seq for info in infos])]

    def train(self) -> None:
        plan = plan_lora(self.back_end, targets=(), rank=4, alpha=8, dropout=0.0, new_modules=self.new_modules)
        attach_lora(self.back_end, plan, task=self.task, seed=7)
        learner = Learner(self.back_end, learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=0.0)
        settings = TrainSettings(
            bundle="b", run="r", expect_samples=EACH * len(self.cuts), epochs=2, batch_samples=6, window_samples=16,
            warmup_steps=0,
        )  # fmt: skip
        cpu = torch.device("cpu")
        around = Surroundings(
            say=print, stopped=lambda: False, wait=time.sleep, train_device=cpu, source=self.source,
            feed=Feed(self.source, self.back_end, cpu), prepare=self.prepare,
        )  # fmt: skip
        with MetricsLog(self.folder / "metrics.jsonl", after_step=0) as metrics:
            trainer = Trainer(
                learner,
                self.store,
                settings,
                checkpoints=Checkpoints(self.folder / "c"),
                metrics=metrics,
                around=around,
            )
            assert trainer.run() is Ending.DONE
        save_adapter(self.back_end, self.folder / "adapter", base_name=str(self.model), revision=None, card="card")
        self.back_end.model.train(False)


def _whole_model(folder: Path, task: Task):
    if task is Task.CAUSAL_LM:
        return AutoModelForCausalLM.from_pretrained(folder).train(False)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS)).train(False)


def _gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_device_and_the_published_adapter_alone_compute_the_same_function(tiny_model, tmp_path, family, task):
    run = Run(tmp_path / "run", tiny_model(family), task, CUTS, layer=3)
    with ExitStack() as stack:
        run.open(stack)
        run.train()
        rows = run.rows()
    base = _whole_model(run.model, task)
    untrained = [base(input_ids=_ids(n)[None], attention_mask=torch.ones_like(_ids(n))[None]).logits for n in range(3)]
    published = PeftModel.from_pretrained(base, run.folder / "adapter").train(False)
    with torch.no_grad():
        for number, own in enumerate(rows):
            ids = _ids(number)
            wanted = published(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits
            found = run.back_end(*run.back_end.pad([own]))
            assert _gap(found, wanted) < FP32_RELATIVE, f"sample of cut {CUTS[number % 3]}"
            if number < len(untrained):
                assert _gap(untrained[number], wanted) > 100 * FP32_RELATIVE, "training changed nothing"


def test_unlike_cuts_train_the_adapter_that_the_deepest_cut_alone_trains(tiny_model, tmp_path):
    adapters = []
    for name, cuts in (("mixed", CUTS), ("deepest", (3, 3, 3))):
        run = Run(tmp_path / name, tiny_model("llama"), Task.TEXT_CLASSIFICATION, cuts, layer=3)
        with ExitStack() as stack:
            run.open(stack)
            run.train()
            assert (run.source is run.store) == (name == "deepest")
            adapters.append({n: p.detach() for n, p in run.back_end.model.named_parameters() if p.requires_grad})
    mixed, deepest = adapters
    assert mixed.keys() == deepest.keys()
    for name, parameter in mixed.items():
        assert _gap(parameter, deepest[name]) < 100 * FP32_RELATIVE, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_lifting_that_was_interrupted_goes_on_to_the_same_bits(tiny_model, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(lift, "GROUP_TOKENS", 24)
    wanted = _lifted(tmp_path / "whole", tiny_model("llama"), dtype, stop_after=None)
    for stop_after in (1, 4):
        folder = tmp_path / f"parted{stop_after}"
        folder.mkdir()
        shutil.copy(tmp_path / "whole" / "store.sqlite", folder)
        assert not _lifted(folder, tiny_model("llama"), dtype, stop_after=stop_after)
        found = _lifted(folder, tiny_model("llama"), dtype, stop_after=None)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def _lifted(folder: Path, model: Path, dtype: torch.dtype, *, stop_after: int | None) -> list[torch.Tensor]:
    """Rows of all samples; none when lifting was stopped after some groups."""
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return stop_after is not None and asked > stop_after

    run = Run(folder, model, Task.TEXT_CLASSIFICATION, CUTS, layer=3, dtype=dtype)
    with ExitStack() as stack:
        run.open(stack, stopped=stopped)
        if stop_after is None:
            return run.rows()
        run.prepare(run.store.sample_infos(role=Role.TRAIN))
        with pytest.raises(RuntimeError, match="before it was lifted"):
            run.source.load([info.seq for info in run.store.sample_infos(role=Role.TRAIN)])
    return []


def test_lifted_rows_are_the_rows_of_the_whole_model_at_that_layer(tiny_model, tmp_path):
    run = Run(tmp_path / "run", tiny_model("llama"), Task.TEXT_CLASSIFICATION, (1, 2), layer=3)
    with ExitStack() as stack:
        run.open(stack)
        rows = run.rows()
    front = cut_front(_load(run.model, run.task).model, 3)
    for number, own in enumerate(rows):
        ids = _ids(number)
        assert _gap(own, front(ids[None], torch.ones_like(ids)[None])[0]) < FP32_RELATIVE


def test_what_was_lifted_from_a_sample_that_had_the_number_before_is_not_used(tiny_model, tmp_path):
    run = Run(tmp_path / "run", tiny_model("llama"), Task.TEXT_CLASSIFICATION, (1, 3), layer=3)
    with ExitStack() as stack:
        run.open(stack)
        before = run.rows()
    (run.folder / "store.sqlite").unlink()
    other = Run(run.folder, run.model, run.task, (2, 1), layer=3)
    with ExitStack() as stack:
        other.open(stack)
        after = other.rows()
        origins, last = other.store.origins(range(1, len(after) + 1)), len(after)
        assert other.source._lifted.present(first_seq=1, last_seq=last) == origins
    assert all(_gap(one, two) < FP32_RELATIVE for one, two in zip(before, after, strict=True))


def test_samples_of_a_bundle_that_is_not_of_the_run_are_refused_by_name(tiny_model, tmp_path):
    run = Run(tmp_path / "run", tiny_model("llama"), Task.TEXT_CLASSIFICATION, (1, 2), layer=3)
    with ExitStack() as stack:
        run.open(stack)
    strange = Run(run.folder, run.model, run.task, (1,), layer=3)
    with ExitStack() as stack:
        strange.open(stack)
        with pytest.raises(MismatchError, match=f"bundle {_bundle(2)[:12]}, which is not one of the run's"):
            strange.rows()


def test_layers_that_samples_are_lifted_through_exist_once(tiny_model):
    model = _load(tiny_model("llama"), Task.TEXT_CLASSIFICATION).model
    bytes_before = sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())
    lifts = make_lifts(model, cuts={_bundle(cut): cut for cut in CUTS}, layer=3, device=torch.device("cpu"))
    assert lifts is not None
    back_end = BackEnd(model, 3)
    parameters = [p for part in (*lifts.segments.values(), back_end) for p in part.parameters()]
    held = {p.data_ptr(): p.nbytes for p in parameters}
    assert sum(held.values()) < bytes_before
    assert set(lifts.segments) == {1, 2}
    assert sharing_weights(back_end.model) is not back_end.model


def test_a_forgotten_sample_leaves_nothing_when_it_is_lifted_in_that_moment(tiny_model, tmp_path):
    run = Run(tmp_path / "run", tiny_model("llama"), Task.TEXT_CLASSIFICATION, (1, 2), layer=3)
    with ExitStack() as stack:
        run.open(stack)
        infos, load = run.store.sample_infos(role=Role.TRAIN), run.store.load

        def load_and_forget(seqs):
            loaded = load(seqs)
            run.store._connection.execute("DELETE FROM samples WHERE seq = 1")
            return loaded

        run.store.load = load_and_forget  # type: ignore[method-assign]
        run.prepare(infos)
        there = run.source._lifted.present(first_seq=1, last_seq=100)
    assert sorted(there) == [info.seq for info in infos[1:]]


def test_rows_keep_the_dtype_the_back_end_computes_in(tiny_model, tmp_path):
    run = Run(tmp_path / "run", tiny_model("llama"), Task.TEXT_CLASSIFICATION, (1, 2), layer=3, dtype=torch.bfloat16)
    with ExitStack() as stack:
        run.open(stack)
        for own in run.rows():
            assert torch.equal(own.to(torch.bfloat16).float(), own)
        (sample,) = run.source.load([1])
        assert decode_rows(sample.rows).dtype == np.float32
