"""The exported graph against PyTorch, family by family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sf_contract.codec import FloatRows, WireCodec, decode_rows, encode_rows, has_scales, relative_row_errors
from sf_contract.front_end import FrontEnd
from sf_export.graph import export_graph, serialize
from sf_export.projections import groups_of, split_gemms
from sf_export.wire import WireFront
from sf_model.checkpoint import load_model, open_checkpoint
from sf_model.front import FrontModel, cut_front
from support.tiny_models import FAMILIES, HIDDEN
from support.tolerances import FP32_RELATIVE
from support.wire_rows import int4_for

CUT = 2
SEQUENCES = ([5, 9, 33, 7, 12, 60, 3, 18, 41], [11, 2, 50], [8], [6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6])
KINDS = {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "bert": (
        "attention.self.query, key, value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
}
LLAMA_KINDS = ("self_attn.q_proj, k_proj, v_proj", "self_attn.o_proj", "mlp.gate_proj, up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class _Exported:
    front: FrontModel
    fp32: FrontEnd
    int8: FrontEnd
    kinds: tuple[str, ...]


def _front(folder) -> FrontModel:
    return cut_front(load_model(open_checkpoint(str(folder)), task=None, dtype=torch.float32).model, CUT)


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tiny_model) -> _Exported:
    """The front end of a family as PyTorch module and as fp32 graphs with fp32 and int8 rows."""
    front = _front(tiny_model(request.param))
    plain, coded = (export_graph(front, hidden=HIDDEN, codec=codec) for codec in (WireCodec.FP32, WireCodec.INT8))
    split_gemms(plain)
    names = tuple(group.kind for group in groups_of(plain))
    return _Exported(
        front=front,
        fp32=FrontEnd(serialize(plain), codec=WireCodec.FP32),
        int8=FrontEnd(serialize(coded), codec=WireCodec.INT8),
        kinds=names,
    )


def _torch_rows(front: FrontModel, sequence: list[int]) -> FloatRows:
    token_ids = torch.tensor([sequence])
    with torch.no_grad():
        return front(token_ids, torch.ones_like(token_ids))[0].numpy()


@pytest.mark.slow
def test_rows_of_single_sequences_equal_pytorchs(exported: _Exported) -> None:
    for sequence in SEQUENCES:
        found = decode_rows(exported.fp32.run([sequence])[0])
        assert relative_row_errors(found, _torch_rows(exported.front, sequence)).max() < FP32_RELATIVE


@pytest.mark.slow
def test_rows_of_a_padded_batch_equal_those_of_each_sequence_alone(exported: _Exported) -> None:
    for found, sequence in zip(exported.fp32.run(SEQUENCES), SEQUENCES, strict=True):
        assert found.tokens == len(sequence)
        assert relative_row_errors(decode_rows(found), _torch_rows(exported.front, sequence)).max() < FP32_RELATIVE


@pytest.mark.slow
def test_int8_rows_are_those_of_the_reference_codec(exported: _Exported) -> None:
    """The two graphs are optimized differently, so a value on the edge between two levels may fall either way."""
    for coded, plain in zip(exported.int8.run(SEQUENCES), exported.fp32.run(SEQUENCES), strict=True):
        wanted = encode_rows(plain.rows.astype(np.float32), WireCodec.INT8)
        np.testing.assert_allclose(coded.scales, wanted.scales, rtol=FP32_RELATIVE)
        difference = np.abs(coded.rows.astype(int) - wanted.rows.astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


@pytest.mark.slow
def test_matrix_products_are_found_and_named(exported: _Exported, request: pytest.FixtureRequest) -> None:
    family = request.node.callspec.params["exported"]
    assert exported.kinds == KINDS.get(family, LLAMA_KINDS) * CUT


def test_the_codec_of_the_front_end_is_the_reference_codec_to_the_last_bit(tiny_model) -> None:
    front = _front(tiny_model("llama"))
    token_ids, mask = torch.tensor([SEQUENCES[0]]), torch.ones(1, len(SEQUENCES[0]), dtype=torch.int64)
    index = torch.arange(len(SEQUENCES[0]))
    encoders: dict[WireCodec, Callable[..., tuple[torch.Tensor, ...]]] = {
        codec: WireFront(front, hidden=HIDDEN, codec=codec, int4=int4_for(codec, HIDDEN)) for codec in WireCodec
    }
    with torch.no_grad():
        rows = encoders[WireCodec.FP32](token_ids, mask, index)[0].numpy()
        for codec, encoder in encoders.items():
            found = encoder(token_ids, mask, index)
            wanted = encode_rows(rows, codec, int4_for(codec, HIDDEN))
            np.testing.assert_array_equal(found[0].numpy(), wanted.rows)
            if has_scales(codec):
                np.testing.assert_array_equal(found[1].numpy(), wanted.scales)


def test_a_group_of_zeros_has_scale_one() -> None:
    class _Zeros(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return torch.zeros(*input_ids.shape, HIDDEN)

    encoder = WireFront(_Zeros(), hidden=HIDDEN, codec=WireCodec.INT8)  # type: ignore[arg-type]  # only called
    rows, scales = encoder(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3), torch.arange(3))
    assert (rows == 0).all()
    assert (scales == 1).all()


@pytest.mark.parametrize("codec", [WireCodec.INT8, WireCodec.INT4])
def test_one_channel_that_is_not_a_number_makes_the_whole_row_recognisable(tiny_model, codec: WireCodec) -> None:
    front = _front(tiny_model("llama"))
    with torch.no_grad():
        front.base.get_input_embeddings().weight[5, 3] = float("nan")
    graph = serialize(export_graph(front, hidden=HIDDEN, codec=codec, int4=int4_for(codec, HIDDEN)))
    good, bad = FrontEnd(graph, codec=codec).run([[7, 8], [7, 5]])
    assert good.is_finite()
    assert not bad.is_finite()
