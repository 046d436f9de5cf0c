"""The row codec int4 inside an ONNX graph, run by ONNX Runtime, against the NumPy reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch

from sf_contract.codec import EncodedRows, FloatRows, WireCodec, encode_rows
from sf_contract.front_end import open_session
from sf_contract.int4 import Int4Parameters, calibrate
from sf_export.graph import export_graph, serialize
from sf_export.wire import WireFront
from support.wire_rows import model_like_rows

WIDTHS = [200, *(pytest.param(hidden, marks=pytest.mark.slow) for hidden in (5, 72, 97, 576))]
"""All three widths of channels; few channels; none with 8 bits; a last group of one channel; SmolLM2's."""
STRANGE = (np.nan, np.inf, -np.inf, 3e38)
GOOD_ROWS = 300


class _Table(torch.nn.Module):
    """Stands in for a front end: row n is the activation of token n."""

    def __init__(self, rows: FloatRows) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.from_numpy(rows), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.embedding(input_ids, self.rows)


@dataclass(frozen=True)
class _Exported:
    content: bytes
    rows: FloatRows
    int4: Int4Parameters
    encoded: EncodedRows


@pytest.fixture(scope="module", params=WIDTHS)
def exported(request: pytest.FixtureRequest) -> _Exported:
    """A graph that only looks rows up and encodes them, and what it makes of good rows and of strange ones behind them."""
    hidden = request.param
    int4 = calibrate(model_like_rows(256, hidden, seed=1))
    rows = np.concatenate([_good_rows(int4), _strange_rows(int4)])
    front = _Table(rows)
    model = export_graph(front, hidden=hidden, codec=WireCodec.INT4, int4=int4)  # type: ignore[arg-type]  # only called
    content = serialize(model)
    return _Exported(content=content, rows=rows, int4=int4, encoded=_run(content, len(rows), int4))


def _good_rows(int4: Int4Parameters) -> FloatRows:
    rows = model_like_rows(GOOD_ROWS, len(int4.order))
    rows[7] = 0
    rows[8] *= 1e-30
    rows[9] *= 1e4
    rows[10, int4.order] = int4.mean
    return rows


def _strange_rows(int4: Int4Parameters) -> FloatRows:
    """Each strange value in the first and in the last place of the wire order."""
    rows = model_like_rows(2 * len(STRANGE), len(int4.order), seed=3)
    for index, value in enumerate(STRANGE):
        rows[2 * index, int4.order[0]] = rows[2 * index + 1, int4.order[-1]] = value
    return rows


def _run(content: bytes, tokens: int, int4: Int4Parameters) -> EncodedRows:
    session = open_session(content)
    token_ids = np.arange(tokens)[None]
    inputs = {"input_ids": token_ids, "attention_mask": np.ones_like(token_ids), "row_index": token_ids[0]}
    known = {value.name for value in session.get_inputs()}
    rows, scales = session.run(["rows", "scales"], {name: inputs[name] for name in known})
    return EncodedRows(codec=WireCodec.INT4, rows=rows, scales=scales, int4=int4)


def test_the_graph_encodes_as_the_reference_does_to_the_last_bit(exported: _Exported) -> None:
    found = exported.encoded.part(0, GOOD_ROWS)
    wanted = encode_rows(exported.rows[:GOOD_ROWS], WireCodec.INT4, exported.int4)
    assert found.rows.dtype == np.uint8
    assert found.scales.dtype == np.float16
    np.testing.assert_array_equal(found.rows, wanted.rows)
    np.testing.assert_array_equal(found.scales, wanted.scales)


def test_a_value_that_is_not_finite_or_too_large_makes_its_row_recognisable(exported: _Exported) -> None:
    encoded = exported.encoded
    assert encoded.part(0, GOOD_ROWS).is_finite()
    assert not any(encoded.part(n, n + 1).is_finite() for n in range(GOOD_ROWS, encoded.tokens))


def test_the_graph_holds_standard_operations_only(exported: _Exported) -> None:
    graph = onnx.load_from_string(exported.content)
    assert {node.domain for node in graph.graph.node} == {""}
    assert [opset.domain for opset in graph.opset_import] == [""]
    onnx.checker.check_model(graph, full_check=True)


def test_the_parameters_add_little_to_the_graph(exported: _Exported) -> None:
    """Order, mean, unit and numbers of levels of each channel; the operations themselves."""
    assert len(exported.content) - exported.rows.nbytes < 32 * len(exported.int4.order) + 40_000


def test_int4_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="parameters"):
        WireFront(_Table(model_like_rows(2, 8)), hidden=8, codec=WireCodec.INT4)  # type: ignore[arg-type]  # only built
