"""Token embeddings with few bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sf_export.embedding import Int4Embedding, Int8Embedding, quantize_embedding
from sf_export.settings import EmbeddingBits
from sf_model.checkpoint import load_model, open_checkpoint
from sf_model.front import cut_front
from support.tiny_models import VOCABULARY


def test_an_int8_embedding_keeps_every_token_within_half_a_level() -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(50, 24)
    rounded = Int8Embedding(embedding, 50)
    token_ids = torch.arange(50)[None]
    with torch.no_grad():
        difference = (rounded(token_ids) - embedding(token_ids)).abs()
    assert (difference <= rounded.scales / 2 * 1.0001).all()
    assert rounded.table.dtype == torch.int8


@pytest.mark.parametrize("kind", [Int8Embedding, Int4Embedding])
def test_a_table_that_is_rounded_in_parts_is_the_one_rounded_whole(monkeypatch, kind) -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(50, 24)
    whole = kind(embedding, 50).state_dict()
    monkeypatch.setattr("sf_export.embedding._ROWS_AT_ONCE", 16)
    parts = kind(embedding, 50).state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_an_int8_embedding_holds_the_scaling_its_module_applies() -> None:
    class _Scaled(torch.nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) * 12.0

    embedding = _Scaled(20, 8)
    with torch.no_grad():
        ratio = Int8Embedding(embedding, 20)(torch.tensor([[4]])) / embedding(torch.tensor([[4]]))
    assert float((ratio - 1).abs().median()) < 0.05


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).mean())


@pytest.mark.parametrize("hidden", [64, 72, 20, 7])
def test_a_4_bit_embedding_takes_half_a_byte_per_channel_and_stays_close(hidden: int) -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(50, hidden)
    rounded = Int4Embedding(embedding, 50)
    token_ids = torch.arange(50)[None]
    with torch.no_grad():
        assert _relative(rounded(token_ids), embedding(token_ids)) < 0.13
    assert rounded.table.dtype == torch.uint8
    assert rounded.table.shape == (50, -(-hidden // 2))


def test_massive_channels_cost_a_4_bit_embedding_little() -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(50, 128)
    with torch.no_grad():
        embedding.weight[:, 5] *= 20
        token_ids = torch.arange(50)[None]
        assert _relative(Int4Embedding(embedding, 50)(token_ids), embedding(token_ids)) < 0.13
        scales = embedding.weight.abs().amax(dim=1, keepdim=True) / 7
        plain = torch.round(embedding.weight / scales) * scales
        others = torch.arange(128) != 5
        assert _relative(plain[:, others], embedding.weight[:, others]) > 0.4


def test_a_token_whose_embedding_is_zero_stays_zero() -> None:
    embedding = torch.nn.Embedding(4, 16)
    with torch.no_grad():
        embedding.weight[2] = 0
        for kind in (Int8Embedding, Int4Embedding):
            np.testing.assert_array_equal(kind(embedding, 4)(torch.tensor([[2]])).numpy(), np.zeros((1, 1, 16)))


@pytest.mark.parametrize(("bits", "kind"), [(EmbeddingBits.INT8, Int8Embedding), (EmbeddingBits.INT4, Int4Embedding)])
def test_only_the_token_embedding_is_rounded(tiny_model, bits: EmbeddingBits, kind: type) -> None:
    model = load_model(open_checkpoint(str(tiny_model("gpt2"))), task=None, dtype=torch.float32).model
    front = cut_front(model, 2)
    quantize_embedding(front, VOCABULARY, bits)
    assert isinstance(front.base.wte, kind)
    assert type(front.base.wpe) is torch.nn.Embedding
