"""Every family that `sf-export families` lists: front and back are the whole model, and the graph is the front."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from sf_contract.codec import WireCodec, decode_rows, relative_row_errors
from sf_contract.front_end import FrontEnd
from sf_contract.manifest import Task
from sf_export.families import FAMILIES
from sf_export.graph import export_graph, serialize
from sf_export.main import main
from sf_model.back import BackEnd, PadSide
from sf_model.config_view import check_task_class, model_class, view_config
from sf_model.front import FrontModel, cut_front
from sf_model.probe import check_cut
from sf_server.training.lora import LoraPlan, attach_lora, plan_lora, trainable
from support.tiny_models import HIDDEN, LAYERS, VOCABULARY, WINDOW, randomize, tiny_config
from support.tolerances import EXACT, FP32_RELATIVE

CUT = 2
CASES = [pytest.param(entry.family, task, id=f"{entry.family}-{task}") for entry in FAMILIES for task in entry.tasks]
NAMES = [entry.family for entry in FAMILIES]
LENGTHS = (14, 4, 9)
GRAPH_LENGTHS = (33, 1, 4, 14)
"""None is as long as the nine tokens that a graph is traced with."""


@functools.cache
def _shared_model(family: str, task: Task) -> PreTrainedModel:
    """One model per family and task; whoever takes it apart takes a copy."""
    config = tiny_config(family)
    config.num_labels = 3
    torch.manual_seed(5)
    return randomize(model_class(task).from_config(config)).eval().requires_grad_(False)


def _last_task(family: str) -> Task:
    """Causal language modelling where a family can do it."""
    return next(entry.tasks[-1] for entry in FAMILIES if entry.family == family)


def _model(family: str, task: Task) -> PreTrainedModel:
    return copy.deepcopy(_shared_model(family, task))


def _sequences(lengths: Sequence[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def _rows(front: FrontModel, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return front(token_ids[None], torch.ones_like(token_ids)[None])[0]


def _relative_gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("family", "task"), CASES)
@torch.no_grad()
def test_front_and_back_are_the_whole_model_exactly_and_padding_changes_nothing(family: str, task: Task) -> None:
    whole = _shared_model(family, task)
    front, back_end = cut_front(whole, CUT), BackEnd(_model(family, task), CUT)
    sequences = _sequences(LENGTHS)
    batch = back_end(*back_end.pad(_rows_of_batch(front, sequences)))
    for token_ids, of_batch in zip(sequences, batch, strict=True):
        wanted = whole(input_ids=token_ids[None], attention_mask=torch.ones_like(token_ids)[None]).logits
        alone = back_end(*back_end.pad([_rows(front, token_ids)]))
        assert float((alone - wanted).abs().max()) == EXACT
        assert _relative_gap(_without_padding(of_batch, back_end.pad_side, wanted.shape[1:]), wanted[0]) < FP32_RELATIVE


def _rows_of_batch(front: FrontModel, sequences: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Padded on the right, as a device does it."""
    mask = pad_sequence([torch.ones_like(token_ids) for token_ids in sequences], batch_first=True)
    padded = front(pad_sequence(list(sequences), batch_first=True), mask)
    return [rows[: len(token_ids)] for rows, token_ids in zip(padded, sequences, strict=True)]


def _without_padding(logits: torch.Tensor, side: PadSide, shape: torch.Size) -> torch.Tensor:
    if logits.shape == shape:
        return logits
    return logits[-shape[0] :] if side is PadSide.LEFT else logits[: shape[0]]


@pytest.mark.parametrize("family", NAMES)
def test_lora_gradients_of_the_back_end_are_those_of_an_ordinary_peft_model(family: str) -> None:
    task = _last_task(family)
    token_ids = _sequences(LENGTHS)[0]
    back_end = BackEnd(_model(family, task), CUT)
    rows = _rows(cut_front(_shared_model(family, task), CUT), token_ids)
    plan = plan_lora(back_end, targets=(), rank=2, alpha=4, dropout=0.0, new_modules=())
    attach_lora(back_end, plan, task=task, seed=7)
    parameters = trainable(back_end)
    ordinary = _ordinary_peft(family, task, plan)
    by_name = dict(ordinary.named_parameters())
    assert {name for name, parameter in by_name.items() if parameter.requires_grad} == set(parameters)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # LoRA's B starts at zero, which would hide errors in A
            by_name[name].copy_(parameter)

    (back_end(*back_end.pad([rows])) ** 2).sum().backward()
    (ordinary(input_ids=token_ids[None], attention_mask=torch.ones_like(token_ids)[None]).logits ** 2).sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert float(by_name[name].grad.abs().max()) > 0, name
        assert float((parameter.grad - by_name[name].grad).abs().max()) == EXACT, name


def _ordinary_peft(family: str, task: Task, plan: LoraPlan) -> torch.nn.Module:
    config = LoraConfig(
        task_type="CAUSAL_LM" if task is Task.CAUSAL_LM else "SEQ_CLS",
        r=2,
        lora_alpha=4,
        target_modules=list(plan.targets),
        layers_to_transform=list(range(CUT, LAYERS)),
        layers_pattern=plan.layers_name,
        fan_in_fan_out=plan.conv1d,
    )
    return get_peft_model(_model(family, task), config)


@pytest.mark.parametrize("family", NAMES)
def test_the_check_of_a_cut_passes_at_every_cut_and_leaves_the_model_alone(family: str) -> None:
    model = _shared_model(family, _last_task(family))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for cut in range(1, LAYERS):
        cut_front(model, cut)
        check_cut(model, cut)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_twenty_families_are_listed_with_the_tasks_that_transformers_has_classes_for() -> None:
    assert len(set(NAMES)) == len(NAMES) == 20
    for entry in FAMILIES:
        config = tiny_config(entry.family)
        assert config.model_type == entry.family
        assert view_config(config).layers == LAYERS
        for task in entry.tasks:
            check_task_class(config, task)


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_the_graph_gives_pytorchs_rows_for_any_length_and_batch(family: str) -> None:
    assert max(GRAPH_LENGTHS) > 2 * WINDOW
    front = cut_front(_shared_model(family, _last_task(family)), CUT)
    graph = FrontEnd(serialize(export_graph(front, hidden=HIDDEN, codec=WireCodec.FP32)), codec=WireCodec.FP32)
    sequences = _sequences(GRAPH_LENGTHS)
    batch = graph.run([ids.tolist() for ids in sequences])
    for of_batch, ids in zip(batch, sequences, strict=True):
        wanted = _rows(front, ids).numpy()
        alone = graph.run([ids.tolist()])[0]
        assert relative_row_errors(decode_rows(alone), wanted).max() < FP32_RELATIVE
        assert relative_row_errors(decode_rows(of_batch), wanted).max() < FP32_RELATIVE


def test_the_command_prints_the_list_that_is_tested_and_loads_no_heavy_library(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["families", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [entry["family"] for entry in printed["families"]] == NAMES
    assert main(["families"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in NAMES)
    assert max(map(len, lines)) <= 120
    program = (
        "import sys\nfrom sf_export.main import main\nmain(['families'])\n"
        "assert not {'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
