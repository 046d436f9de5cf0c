"""The fast step computes what an ordinary PEFT step of the whole model computes: loss and every gradient, in every family."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from sf_contract.activations import NO_TARGET
from sf_contract.manifest import Task
from sf_export.families import FAMILIES
from sf_model.back import BackEnd, PadSide
from sf_model.config_view import model_class
from sf_model.front import cut_front
from sf_model.packed import blocks_of, pack_if_possible, probe_rows
from sf_server.training import head
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.fused_lora import fuse_lora
from sf_server.training.head import HeadKind, TargetHead
from sf_server.training.learner import Learner
from sf_server.training.lora import LoraPlan, attach_lora, plan_lora
from sf_server.training.objective import Objective, judge
from sf_server.training.slices import slices_of
from sf_server.training.speed import speed_up
from support.tiny_models import LAYERS, VOCABULARY, randomize, tiny_config
from support.tolerances import BF16_RELATIVE, EXACT, FP32_RELATIVE

CUT = 2
CASES = [pytest.param(entry.family, task, id=f"{entry.family}-{task}") for entry in FAMILIES for task in entry.tasks]
LENGTHS = (14, 4, 9, 9)
PADDED = ("bloom", "deberta-v2", "gemma2")
"""Families whose attention is not Transformers' `sdpa`: they go on computing padding."""
HEADS_WITH_MORE = ("gemma2", "granite")
"""Families that do something to logits after the head: a soft cap, a scale."""
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 1.5])


@functools.cache
def _shared_model(family: str, task: Task) -> nn.Module:
    config = tiny_config(family)
    config.num_labels = 3
    torch.manual_seed(5)
    return randomize(model_class(task).from_config(config)).eval().requires_grad_(False)


class Case:
    """A back end with LoRA, and a batch for it."""

    def __init__(self, family: str, task: Task, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        self.family, self.task = family, task
        shared = _shared_model(family, task)
        self.back_end = BackEnd(copy.deepcopy(shared).to(dtype), CUT)
        self.plan = plan_lora(self.back_end, targets=(), rank=2, alpha=5, dropout=dropout, new_modules=())
        attach_lora(self.back_end, self.plan, task=task, seed=7)
        self.learner = Learner(self.back_end, learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=0.0)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.learner.parameters.values():  # B starts at zero, which would hide errors in A
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        self.ids = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
        front = cut_front(shared, CUT)
        with torch.no_grad():
            rows, mask = self.back_end.pad([front(ids[None], torch.ones_like(ids)[None])[0] for ids in self.ids])
        self.batch = BatchTensors(rows=rows, mask=mask, labels=self._labels(), tokens=int(mask.sum()))

    def _labels(self) -> torch.Tensor:
        if self.task is Task.TEXT_CLASSIFICATION:
            return torch.tensor([1, 0, 2, 2])
        return self.padded([self._next_tokens(ids) for ids in self.ids], NO_TARGET)

    @staticmethod
    def _next_tokens(ids: torch.Tensor) -> torch.Tensor:
        """The first third is the prompt: its tokens are no targets."""
        targets = torch.full_like(ids, NO_TARGET)
        begin = len(ids) // 3
        targets[begin:-1] = ids[begin + 1 :]
        return targets

    def padded(self, sequences: list[torch.Tensor], value: int) -> torch.Tensor:
        side = self.back_end.pad_side.value
        return pad_sequence(sequences, batch_first=True, padding_value=value, padding_side=side)

    def gradients(self) -> dict[str, torch.Tensor]:
        found = {name: p.grad for name, p in self.learner.parameters.items() if p.grad is not None}
        assert found.keys() == self.learner.parameters.keys()
        self.back_end.model.zero_grad(set_to_none=True)
        return found

    def fast(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss and gradients as the learner computes them."""
        self.back_end.model.train()
        part = self.learner._gradients(self.batch)
        return part.loss, self.gradients()

    def ordinary(self) -> tuple[float, dict[str, torch.Tensor]]:
        """Loss and gradients of the whole model with plain PEFT, as its own class computes them from token ids and labels."""
        model = _ordinary_peft(self)
        by_name = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.learner.parameters.items():
                by_name[name].copy_(parameter)
        ids, mask = self.padded(self.ids, 0), self.batch.mask
        options = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if self.back_end._takes_positions else {}
        if self.task is Task.CAUSAL_LM:
            output = model(
                input_ids=ids, attention_mask=mask, labels=_hugging_face_labels(self.batch.labels), **options
            )
            loss = output.loss
        else:
            # With ids in it, the class itself looks for the last real token; on the left that is the last one.
            options = options if self.back_end.pad_side is PadSide.LEFT else {}
            loss = model(input_ids=ids, attention_mask=mask, labels=self.batch.labels, **options).loss
        loss.backward()
        return float(loss.detach()), {name: by_name[name].grad for name in self.learner.parameters}


def _hugging_face_labels(targets: torch.Tensor) -> torch.Tensor:
    """Transformers moves labels by one itself."""
    return torch.cat([torch.full_like(targets[:, :1], NO_TARGET), targets[:, :-1]], dim=1)


def _ordinary_peft(case: Case) -> nn.Module:
    plan: LoraPlan = case.plan
    config = LoraConfig(
        task_type="CAUSAL_LM" if case.task is Task.CAUSAL_LM else "SEQ_CLS",
        r=2,
        lora_alpha=5,
        target_modules=list(plan.targets),
        layers_to_transform=list(range(CUT, LAYERS)),
        layers_pattern=plan.layers_name,
        fan_in_fan_out=plan.conv1d,
    )
    model = get_peft_model(copy.deepcopy(_shared_model(case.family, case.task)), config)
    return model.train()


def _relative_gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _assert_same_step(
    found: tuple[float, dict[str, torch.Tensor]], wanted: tuple[float, dict[str, torch.Tensor]], limit: float
) -> None:
    assert found[0] == pytest.approx(wanted[0], rel=limit)
    for name, gradient in found[1].items():
        assert float(wanted[1][name].norm()) > 0, name
        assert _relative_gap(gradient, wanted[1][name]) < 10 * limit, name


@pytest.mark.parametrize(("family", "task"), CASES)
def test_loss_and_gradients_are_those_of_the_whole_ordinary_model(family: str, task: Task) -> None:
    case = Case(family, task)
    wanted = case.ordinary()
    speedups = speed_up(case.back_end)
    assert speedups.packed == (family not in PADDED)
    assert speedups.fused == sum(hasattr(module, "lora_A") for module in case.back_end.model.modules()) > 0
    _assert_same_step(case.fast(), wanted, FP32_RELATIVE)
    if task is Task.CAUSAL_LM:
        kind = HeadKind.GATHERED if family in HEADS_WITH_MORE else HeadKind.CHUNKED
        assert case.learner.objective.head.kind is kind


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("llama", Task.CAUSAL_LM),
        ("gpt2", Task.CAUSAL_LM),
        ("gemma3_text", Task.TEXT_CLASSIFICATION),
        ("bloom", Task.CAUSAL_LM),
        ("bert", Task.TEXT_CLASSIFICATION),
    ],
)
def test_checkpointed_blocks_give_the_same_gradients_and_run_twice(family: str, task: Task) -> None:
    plain, checkpointed = Case(family, task), Case(family, task)
    speed_up(plain.back_end)
    speed_up(checkpointed.back_end, gradient_checkpointing=True)
    runs: list[int] = []
    for case in (plain, checkpointed):
        projection = next(m for m in blocks_of(case.back_end)[0].modules() if hasattr(m, "lora_A"))
        projection.register_forward_pre_hook(
            lambda *_, case=case: runs.append(id(case)) if torch.is_grad_enabled() else None
        )
    wanted, found = plain.fast(), checkpointed.fast()
    assert found[0] == wanted[0]
    assert all(float((found[1][name] - wanted[1][name]).abs().max()) == EXACT for name in wanted[1])
    assert (runs.count(id(plain)), runs.count(id(checkpointed))) == (1, 2)


@pytest.mark.parametrize(
    ("family", "task"), [("llama", Task.CAUSAL_LM), ("gemma2", Task.CAUSAL_LM), ("bert", Task.TEXT_CLASSIFICATION)]
)
@pytest.mark.parametrize("max_tokens", [1, 30])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(family: str, task: Task, max_tokens: int) -> None:
    case = Case(family, task)
    case.batch = BatchTensors(
        rows=case.batch.rows, mask=case.batch.mask, labels=case.batch.labels, tokens=case.batch.tokens, weights=WEIGHTS
    )
    wanted = case.fast()
    case.learner._micro_batch_tokens = max_tokens
    assert len(list(slices_of(case.batch, case.back_end.pad_side, max_tokens=max_tokens))) > 1
    _assert_same_step(case.fast(), wanted, FP32_RELATIVE)


def test_weights_of_samples_weigh_their_targets_only() -> None:
    case = Case("llama", Task.CAUSAL_LM)
    batch = case.batch
    weighted = BatchTensors(rows=batch.rows, mask=batch.mask, labels=batch.labels, tokens=batch.tokens, weights=WEIGHTS)
    wanted = judge(case.back_end(batch.rows, batch.mask), batch.labels, WEIGHTS)
    outcome = Objective(case.back_end).outcome(weighted, predict=True)
    assert float(outcome.loss_sum.detach()) == pytest.approx(float(wanted.loss_sum.detach()), rel=FP32_RELATIVE)
    assert outcome.targets == wanted.targets
    places = (batch.labels != NO_TARGET).nonzero()
    assert torch.equal(outcome.samples, places[:, 0])
    assert torch.equal(outcome.answers, batch.labels[batch.labels != NO_TARGET])
    assert torch.equal(outcome.predictions, wanted.predictions[batch.labels != NO_TARGET])


def test_logits_are_computed_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("llama", Task.CAUSAL_LM)
    wanted = case.fast()
    monkeypatch.setitem(head.LOGITS_AT_ONCE, "cpu", 3 * VOCABULARY)
    most: list[int] = []
    ordinary = head._logits
    monkeypatch.setattr(head, "_logits", lambda rows, *more: most.append(len(rows)) or ordinary(rows, *more))
    _assert_same_step(case.fast(), wanted, FP32_RELATIVE)
    assert max(most) == 3
    assert sum(most) == int((case.batch.labels != NO_TARGET).sum())


@torch.no_grad()
def test_blocks_compute_no_padding_and_the_model_gets_its_batch_back() -> None:
    case = Case("llama", Task.CAUSAL_LM)
    packing = pack_if_possible(case.back_end)
    shapes: list[tuple[int, ...]] = []
    blocks_of(case.back_end)[-1].mlp.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[:2])))
    logits = case.back_end(case.batch.rows, case.batch.mask)
    assert shapes == [(1, sum(LENGTHS))]
    assert logits.shape == (len(LENGTHS), max(LENGTHS), VOCABULARY)
    packing.detach()
    assert _relative_gap(case.back_end(case.batch.rows, case.batch.mask)[case.batch.mask > 0],
                         logits[case.batch.mask > 0]) < FP32_RELATIVE  # fmt: skip
    assert shapes[1:] == [(len(LENGTHS), max(LENGTHS))]


@torch.no_grad()
def test_a_batch_without_padding_is_computed_as_it_is() -> None:
    case = Case("qwen2", Task.CAUSAL_LM)
    rows, mask = case.back_end.pad(probe_rows(case.back_end, (6, 6)))
    wanted = case.back_end(rows, mask)
    packing = pack_if_possible(case.back_end)
    assert float((case.back_end(rows, mask) - wanted).abs().max()) == EXACT
    assert packing.layout is None


def test_a_model_that_mixes_rows_outside_of_attention_is_not_packed() -> None:
    case = Case("llama", Task.CAUSAL_LM)
    mlp = blocks_of(case.back_end)[-1].mlp
    mlp.register_forward_hook(lambda _, __, out: out + out.roll(1, dims=1))
    wanted = case.fast()
    assert pack_if_possible(case.back_end) is None
    found = case.fast()
    assert found[0] == wanted[0]
    assert all(torch.equal(found[1][name], wanted[1][name]) for name in wanted[1])


def test_a_head_that_mixes_rows_is_computed_in_the_ordinary_way() -> None:
    case = Case("llama", Task.CAUSAL_LM)
    case.back_end.model.get_base_model().lm_head.register_forward_hook(
        lambda _, __, out: out - out.mean(1, keepdim=True)
    )
    assert TargetHead(case.back_end).kind is HeadKind.ORDINARY


def test_projections_with_dropout_or_dora_are_left_to_peft() -> None:
    assert fuse_lora(Case("llama", Task.CAUSAL_LM, dropout=0.1).back_end) == 0
    back_end = BackEnd(copy.deepcopy(_shared_model("llama", Task.CAUSAL_LM)), CUT)
    plan = plan_lora(back_end, targets=("q_proj",), rank=2, alpha=4, dropout=0.0, new_modules=(), dora=True)
    attach_lora(back_end, plan, task=Task.CAUSAL_LM, seed=0)
    assert fuse_lora(back_end) == 0


def test_a_step_in_bf16_stays_near_the_one_in_fp32() -> None:
    wanted = Case("llama", Task.CAUSAL_LM).fast()
    case = Case("llama", Task.CAUSAL_LM, dtype=torch.bfloat16)
    speed_up(case.back_end)
    found = case.fast()
    assert found[0] == pytest.approx(wanted[0], rel=BF16_RELATIVE)
    assert all(gradient.dtype is torch.float32 for gradient in found[1].values())
    whole = [torch.cat([g.flatten() for g in step[1].values()]) for step in (found, wanted)]
    assert _relative_gap(*whole) < BF16_RELATIVE
