"""The split model is the whole model: forward, loss, gradients, published adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from sf_contract.activations import NO_TARGET
from sf_contract.errors import UsageError
from sf_contract.manifest import Task
from sf_model.back import BackEnd, PadSide
from sf_model.checkpoint import load_model, open_checkpoint
from sf_model.front import cut_front
from sf_server.training.batch_tensors import BatchTensors
from sf_server.training.learner import Learner
from sf_server.training.lora import attach_lora, plan_lora, save_adapter
from sf_server.training.objective import judge
from support.tiny_models import DECODERS, FAMILIES, VOCABULARY
from support.tolerances import BF16_RELATIVE, EXACT, FP32_RELATIVE

CUT = 2
LABELS = ("no", "yes", "maybe")
LENGTHS = (9, 4, 6)
CASES = [(family, Task.TEXT_CLASSIFICATION) for family in FAMILIES] + [(family, Task.CAUSAL_LM) for family in DECODERS]


def _load(folder: Path, task: Task, dtype: torch.dtype = torch.float32):
    labels = LABELS if task is Task.TEXT_CLASSIFICATION else ()
    return load_model(open_checkpoint(str(folder)), task=task, dtype=dtype, labels=labels, seed=3)


def _sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def _rows(folder: Path, task: Task, cut: int = CUT) -> list[torch.Tensor]:
    front = cut_front(_load(folder, task).model, cut)
    with torch.no_grad():
        return [front(ids[None], torch.ones_like(ids)[None])[0] for ids in _sequences()]


def _relative_gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def _ordinary_batch(side: PadSide) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(_sequences(), batch_first=True, padding_value=0, padding_side=side.value)
    return ids, (ids != 0).long()


@pytest.mark.parametrize(("family", "task"), CASES)
def test_front_and_back_give_the_logits_of_the_whole_model_exactly(tiny_model, family, task):
    folder = tiny_model(family)
    whole = _load(folder, task).model
    rows = _rows(folder, task)
    back_end = BackEnd(_load(folder, task).model, CUT)
    for ids, one in zip(_sequences(), rows, strict=True):
        with torch.no_grad():
            wanted = whole(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits
            found = back_end(*back_end.pad([one]))
        assert float((found - wanted).abs().max()) == EXACT


@pytest.mark.parametrize(("family", "task"), CASES)
def test_padding_changes_no_result(tiny_model, family, task):
    folder = tiny_model(family)
    rows = _rows(folder, task)
    back_end = BackEnd(_load(folder, task).model, CUT)
    with torch.no_grad():
        together = back_end(*back_end.pad(rows))
        for index, one in enumerate(rows):
            alone = back_end(*back_end.pad([one]))[0]
            found = together[index]
            if task is Task.CAUSAL_LM:
                found = found[-len(one) :] if back_end.pad_side is PadSide.LEFT else found[: len(one)]
            assert _relative_gap(found, alone) < FP32_RELATIVE


def _targets(task: Task, side: PadSide) -> torch.Tensor:
    if task is Task.TEXT_CLASSIFICATION:
        return torch.tensor([1, 0, 2])
    per_sequence = []
    for ids in _sequences():
        targets = torch.full_like(ids, NO_TARGET)
        targets[1:-1] = ids[2:]  # the first token is the prompt, the rest the completion
        per_sequence.append(targets)
    return torch.nn.utils.rnn.pad_sequence(
        per_sequence, batch_first=True, padding_value=NO_TARGET, padding_side=side.value
    )


@pytest.mark.parametrize(("family", "task"), CASES)
def test_one_split_lora_step_is_an_ordinary_peft_step(tiny_model, family, task):
    folder = tiny_model(family)
    loaded = _load(folder, task)
    back_end = BackEnd(loaded.model, CUT)
    plan = plan_lora(back_end, targets=(), rank=4, alpha=8, dropout=0.0, new_modules=loaded.new_modules)
    attach_lora(back_end, plan, task=task, seed=7)
    learner = Learner(back_end, learning_rate=1e-3, head_learning_rate=1e-3, weight_decay=0.0)
    _fill_lora_b(learner.parameters)

    ordinary = _ordinary_peft(folder, task, plan)
    by_name = dict(ordinary.named_parameters())
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            by_name[name].copy_(parameter)

    rows, mask = back_end.pad(_rows(folder, task))
    targets = _targets(task, back_end.pad_side)
    split_loss = judge(back_end(rows, mask), targets).loss
    split_loss.backward()
    whole_loss = _ordinary_loss(ordinary, task, back_end.pad_side, targets)
    whole_loss.backward()

    assert split_loss.item() == pytest.approx(whole_loss.item(), rel=FP32_RELATIVE)
    for name, parameter in learner.parameters.items():
        assert parameter.grad is not None, name
        assert _relative_gap(parameter.grad, by_name[name].grad) < FP32_RELATIVE * 10, name
    below_the_cut = [name for name, p in by_name.items() if p.requires_grad and name not in learner.parameters]
    assert below_the_cut == []


def _fill_lora_b(parameters) -> None:
    """LoRA's B starts at zero, which would hide every error in A's gradient."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def _ordinary_peft(folder: Path, task: Task, plan) -> PeftModel:
    config = LoraConfig(
        task_type="SEQ_CLS" if task is Task.TEXT_CLASSIFICATION else "CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules=list(plan.targets),
        layers_to_transform=list(range(CUT, 4)),
        layers_pattern=plan.layers_name,
        modules_to_save=list(plan.new_modules) or None,
        fan_in_fan_out=plan.conv1d,
    )
    model = get_peft_model(_load(folder, task).model, config)
    model.train()
    return model


def _ordinary_loss(model: PeftModel, task: Task, side: PadSide, targets: torch.Tensor) -> torch.Tensor:
    ids, mask = _ordinary_batch(side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    if task is Task.TEXT_CLASSIFICATION:
        options = {} if side is PadSide.RIGHT else {"position_ids": positions}
        return model(input_ids=ids, attention_mask=mask, labels=targets, **options).loss
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return cross_entropy(logits.reshape(-1, VOCABULARY), targets.reshape(-1), ignore_index=NO_TARGET)


@pytest.mark.parametrize(("family", "task"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_published_adapter_in_plain_peft_gives_the_trainers_logits(tiny_model, tmp_path, family, task, dtype):
    _check_published(tiny_model(family), tmp_path, task=task, dtype=dtype)


OPTIONS = {
    "dora": {"dora": True},
    "ranks": {"layer_ranks": {2: 1, 3: 6}},
    "all": {"rslora": True, "dora": True, "layer_ranks": {3: 2}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_published_adapters_of_every_kind_give_the_trainers_logits(tiny_model, tmp_path, family, options):
    _check_published(tiny_model(family), tmp_path, **options)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_published_adapter_of_the_upper_layers_only_gives_the_trainers_logits(tiny_model, tmp_path, family):
    _check_published(tiny_model(family), tmp_path, cut=3, rslora=True)


def _check_published(
    folder: Path, where: Path, *, task=Task.TEXT_CLASSIFICATION, dtype=torch.float32, cut=CUT, **options
) -> None:
    loaded = _load(folder, task, dtype)
    back_end = BackEnd(loaded.model, cut)
    plan = plan_lora(back_end, targets=(), rank=4, alpha=8, dropout=0.0, new_modules=loaded.new_modules, **options)
    attach_lora(back_end, plan, task=task, seed=7)
    learner = Learner(back_end, learning_rate=1e-2, head_learning_rate=1e-2, weight_decay=0.0)
    rows, mask = back_end.pad(_rows(folder, task, cut))
    targets = _targets(task, back_end.pad_side)
    for _ in range(3):
        learner.step(BatchTensors(rows=rows, mask=mask, labels=targets, tokens=int(mask.sum())), rate_factor=1.0)
    save_adapter(back_end, where / "adapter", base_name=str(folder), revision=None, card="card")
    back_end.model.train(False)

    base = _plain_base(folder, task)
    untrained = base(**_inputs()).logits
    published = PeftModel.from_pretrained(base, where / "adapter").train(False)
    with torch.no_grad():
        wanted = back_end(*back_end.pad([_rows(folder, task, cut)[0]]))
        found = published(**_inputs()).logits
    limit = FP32_RELATIVE if dtype is torch.float32 else BF16_RELATIVE
    assert _relative_gap(found, wanted.float()) < limit
    assert _relative_gap(found, untrained) > 2 * limit, "training changed nothing, so the comparison shows nothing"


def _inputs() -> dict[str, torch.Tensor]:
    ids = _sequences()[0][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _plain_base(folder: Path, task: Task):
    if task is Task.CAUSAL_LM:
        return AutoModelForCausalLM.from_pretrained(folder).train(False)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS)).train(False)


def test_adapter_names_carry_the_layer_numbers_of_the_whole_model(tiny_model, tmp_path):
    folder = tiny_model("llama")
    loaded = _load(folder, Task.CAUSAL_LM)
    back_end = BackEnd(loaded.model, CUT)
    plan = plan_lora(back_end, targets=("q_proj",), rank=2, alpha=4, dropout=0.0, new_modules=())
    attach_lora(back_end, plan, task=Task.CAUSAL_LM, seed=0)
    names = list(Learner(back_end, learning_rate=1e-3, head_learning_rate=1e-3, weight_decay=0).parameters)
    layers = {name.partition("layers.")[2].partition(".")[0] for name in names}
    assert layers == {"2", "3"}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_layer_has_the_rank_and_scale_that_were_asked_for(tiny_model, family):
    loaded = _load(tiny_model(family), Task.CAUSAL_LM)
    back_end = BackEnd(loaded.model, 1)
    ranks = {2: 3, 3: 16}
    plan = plan_lora(
        back_end, targets=(), rank=4, alpha=8, dropout=0.0, new_modules=(), layer_ranks=ranks, rslora=True, dora=True
    )
    attach_lora(back_end, plan, task=Task.CAUSAL_LM, seed=0)
    found = {}
    for name, module in back_end.model.named_modules():
        if hasattr(module, "lora_A"):
            layer = int(name.partition(f".{plan.layers_name}.")[2].partition(".")[0])
            found.setdefault(layer, set()).add((module.r["default"], round(module.scaling["default"], 6)))
            assert "default" in module.lora_magnitude_vector
    assert found == {layer: {(rank, round(8 / rank**0.5, 6))} for layer, rank in {1: 4, **ranks}.items()}


def test_a_rank_for_a_layer_without_lora_is_refused_with_the_layers_that_have_some(tiny_model):
    back_end = BackEnd(_load(tiny_model("llama"), Task.CAUSAL_LM).model, 2)
    with pytest.raises(UsageError, match="layer 1, which carries no LoRA") as raised:
        plan_lora(back_end, targets=(), rank=4, alpha=8, dropout=0.0, new_modules=(), layer_ranks={1: 2})
    assert raised.value.cure == "name layers from 2 to 3"


def test_an_unknown_target_is_refused_with_those_that_exist(tiny_model):
    back_end = BackEnd(_load(tiny_model("llama"), Task.CAUSAL_LM).model, 2)
    with pytest.raises(UsageError, match="LoRA target c_attn does not exist") as raised:
        plan_lora(back_end, targets=("q_proj", "c_attn"), rank=4, alpha=8, dropout=0.0, new_modules=())
    assert raised.value.cure == "choose from: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
