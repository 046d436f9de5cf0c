"""Segments of a model, one behind the other, are the model; each holds only its own weights."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from transformers import PreTrainedModel

from sf_contract.errors import SplitLayerError
from sf_contract.manifest import Task
from sf_export.families import FAMILIES
from sf_model.back import BackEnd, PadSide, Segment
from sf_model.blocks import find_blocks, rows_leaving
from sf_model.config_view import model_class
from sf_model.front import cut_front
from sf_model.taking_apart import sharing_weights
from sf_server.training.lora import attach_lora, plan_lora, trainable
from support.tiny_models import LAYERS, VOCABULARY, randomize, tiny_config
from support.tolerances import EXACT

NAMES = [entry.family for entry in FAMILIES]
PLANS = ((1, 2, 3), (1, 3))
"""Layers at which the parts of a model meet."""


@functools.cache
def _whole(family: str) -> PreTrainedModel:
    config = tiny_config(family)
    config.num_labels = 3
    task = next(entry.tasks[-1] for entry in FAMILIES if entry.family == family)
    torch.manual_seed(5)
    return randomize(model_class(task).from_config(config)).eval().requires_grad_(False)


def _token_ids() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", NAMES)
@torch.no_grad()
def test_front_segments_and_back_end_one_behind_the_other_are_the_whole_model_exactly(family: str) -> None:
    whole, token_ids = _whole(family), _token_ids()
    mask = torch.ones_like(token_ids)
    wanted = whole(input_ids=token_ids, attention_mask=mask).logits
    for meetings in PLANS:
        rows = cut_front(whole, meetings[0])(token_ids, mask)
        back_end = BackEnd(sharing_weights(whole), meetings[-1])
        for first, until in itertools.pairwise(meetings):
            segment = Segment(sharing_weights(whole), first, until=until, pad_side=back_end.pad_side)
            with rows_leaving(find_blocks(whole).modules[until]) as entering:
                whole(input_ids=token_ids, attention_mask=mask)
            rows = segment(rows, mask)
            assert float((rows - entering[0]).abs().max()) == EXACT
        assert float((back_end(rows, mask) - wanted).abs().max()) == EXACT


@pytest.mark.parametrize("family", NAMES)
def test_a_segment_holds_the_weights_of_its_own_layers_and_shares_them(family: str) -> None:
    whole = _whole(family)
    segment = Segment(sharing_weights(whole), 1, until=3)
    blocks = find_blocks(whole)
    shared = {id(parameter) for parameter in blocks.modules[1:3].parameters()}
    inside = {name: p for name, p in segment.named_parameters() if id(p) in shared}
    assert len(inside) == len(shared)
    assert all(name.removeprefix("model.").startswith(f"{blocks.path}.") for name in inside)
    below_and_above = {id(p) for index in (0, 3) for p in blocks.modules[index].parameters()}
    assert not below_and_above & {id(p) for p in segment.parameters()}
    head = whole.get_output_embeddings()
    if head is not None:
        assert id(head.weight) not in {id(p) for p in segment.parameters()}


def test_gradients_flow_through_segments_as_through_the_whole_model() -> None:
    whole, token_ids = _whole("llama"), _token_ids()
    mask = torch.ones_like(token_ids)
    rows = cut_front(whole, 1)(token_ids, mask).requires_grad_()
    in_two = Segment(sharing_weights(whole), 1, until=3)(rows, mask)
    (in_two_gradient,) = torch.autograd.grad(
        (BackEnd(sharing_weights(whole), 3)(in_two, mask) ** 2).sum(), rows, retain_graph=True
    )
    (at_once,) = torch.autograd.grad((BackEnd(sharing_weights(whole), 1)(rows, mask) ** 2).sum(), rows)
    assert float(at_once.abs().max()) > 0
    assert float((in_two_gradient - at_once).abs().max()) == EXACT


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@torch.no_grad()
def test_padding_changes_nothing_that_leaves_a_segment(family: str) -> None:
    segment = Segment(sharing_weights(_whole(family)), 1, until=3)
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randn(length, segment.hidden, generator=generator) for length in (7, 3)]
    together = segment(*segment.pad(sequences))
    for index, sequence in enumerate(sequences):
        alone = segment(*segment.pad([sequence]))[0]
        mine = slice(-len(sequence), None) if segment.pad_side is PadSide.LEFT else slice(len(sequence))
        torch.testing.assert_close(together[index, mine], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "until"), [(2, 2), (3, 1), (1, LAYERS + 1)])
def test_a_segment_that_is_empty_or_leaves_the_model_is_refused(first: int, until: int) -> None:
    with pytest.raises(SplitLayerError, match="a segment cannot begin"):
        Segment(sharing_weights(_whole("llama")), first, until=until)


def test_lora_on_a_segment_has_the_names_it_has_in_the_whole_model() -> None:
    segment = Segment(sharing_weights(_whole("llama")), 1, until=3)
    plan = plan_lora(segment, targets=("q_proj",), rank=2, alpha=4, dropout=0.0, new_modules=())
    attach_lora(segment, plan, task=Task.CAUSAL_LM, seed=0)
    assert {name.partition("layers.")[2].partition(".")[0] for name in trainable(segment)} == {"1", "2"}
    whole = BackEnd(sharing_weights(_whole("llama")), 1)
    attach_lora(
        whole,
        plan_lora(whole, targets=("q_proj",), rank=2, alpha=4, dropout=0.0, new_modules=()),
        task=Task.CAUSAL_LM,
        seed=0,
    )
    assert set(trainable(segment)) < set(trainable(whole))
