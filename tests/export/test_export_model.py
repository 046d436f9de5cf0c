"""One opened base model serves any number of cuts, and need not be held all the time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from sf_contract.errors import SplitLayerError
from sf_contract.manifest import Task, TaskSpec, Template
from sf_export.model import BaseForExport, HeldModel, load_base
from sf_export.settings import ExportSettings
from sf_model.progress import silent

SPEC = TaskSpec(task=Task.TEXT_CLASSIFICATION, template=Template(), labels=("a", "b"))


@pytest.fixture
def settings(tiny_model) -> ExportSettings:
    """What `load_base` reads of the settings."""
    return cast(ExportSettings, SimpleNamespace(model=str(tiny_model("llama")), revision=None, text_pair=None))


def _base(settings: ExportSettings, *split_layers: int) -> BaseForExport:
    return load_base(settings, SPEC, split_layers=split_layers, say=silent)


def test_one_model_serves_several_cuts(settings) -> None:
    base = _base(settings, 1, 2, 3)
    token_ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        states = base.model(
            input_ids=token_ids, attention_mask=torch.ones_like(token_ids), output_hidden_states=True
        ).hidden_states
        for split_layer in (1, 3, 2):
            rows = base.front(split_layer)(token_ids, torch.ones_like(token_ids))
            assert torch.equal(rows, states[split_layer])


def test_every_cut_is_checked_before_the_weights_are_loaded(settings, monkeypatch) -> None:
    monkeypatch.setattr("sf_export.model.load_exact", lambda *_, **__: pytest.fail("the weights were loaded"))
    with pytest.raises(SplitLayerError, match="split layer 4 is out of range"):
        _base(settings, 2, 4)


@pytest.mark.parametrize(("worth_it", "opened"), [(True, 2), (False, 1)])
def test_a_model_that_was_let_go_is_opened_again_when_it_is_asked_for(worth_it: bool, opened: int) -> None:
    models: list[torch.nn.Module] = []

    def load() -> torch.nn.Module:
        models.append(torch.nn.Identity())
        return models[-1]

    held = HeldModel(load, worth_it=worth_it)
    assert held.model() is held.model() is models[0]
    held.let_go()
    held.let_go()
    assert len(models) == 1
    assert held.model() is held.model() is models[-1]
    assert len(models) == opened
