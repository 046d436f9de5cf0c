"""The search for weights in other files: it knows every place a tensor can be, and never fails in another way."""

from __future__ import annotations

import random

import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from sf_contract import front_end
from sf_contract.errors import BundleError
from sf_contract.front_end import open_session
from sf_contract.graph_file import DATA_LOCATION, EXTERNAL_DATA, PARTS, Kind, check_self_contained
from support.tiny_bundle import front_end_model


def _paths_to_tensors() -> dict[str, dict[int, str]]:
    """Every message type of ONNX from which a tensor can be reached, with the fields that lead there."""
    fields: dict[str, dict[int, str]] = {}

    def visit(message: Descriptor) -> None:
        if message.name not in fields:
            fields[message.name] = {f.number: f.message_type.name for f in message.fields if f.message_type}
            for field in message.fields:
                if field.message_type:
                    visit(field.message_type)

    visit(onnx.ModelProto.DESCRIPTOR)
    leading = {"TensorProto"}
    while True:
        more = {name for name, parts in fields.items() if leading & set(parts.values())} - leading
        if not more:
            break
        leading |= more
    return {name: {n: part for n, part in fields[name].items() if part in leading} for name in leading}


def test_the_search_follows_every_path_that_onnx_itself_knows() -> None:
    ours = {kind.value: {number: part.value for number, part in parts.items()} for kind, parts in PARTS.items()}
    assert ours == _paths_to_tensors()
    numbers = {field.name: field.number for field in TensorProto.DESCRIPTOR.fields}
    assert (numbers["external_data"], numbers["data_location"]) == (EXTERNAL_DATA, DATA_LOCATION)


def test_a_graph_with_its_weights_inside_is_accepted() -> None:
    check_self_contained(front_end_model().SerializeToString(), where="g")


@pytest.mark.parametrize("field", ["external_data", "data_location"])
def test_either_sign_of_a_weight_elsewhere_is_enough(field: str) -> None:
    """Readers differ in which of the two they look at."""
    model = front_end_model()
    if field == "external_data":
        model.graph.initializer[0].external_data.add().key = "location"
    else:
        model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(BundleError, match="another file"):
        check_self_contained(model.SerializeToString(), where="g")


def _nested(kind: Kind, content: bytes, rng: random.Random) -> bytes:
    """Content of one message type, wrapped by a random path up to the model."""
    while kind is not Kind.MODEL:
        parents = [(parent, n) for parent, parts in PARTS.items() for n, part in parts.items() if part is kind]
        kind, number = rng.choice(parents)
        content = _varint(number << 3 | 2) + _varint(len(content)) + content
        if kind is Kind.MODEL and rng.random() < 0.5:
            content = front_end_model().SerializeToString() + content
    return content


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


@given(st.randoms(use_true_random=False))
def test_a_weight_elsewhere_is_found_however_deep_it_lies(rng: random.Random) -> None:
    tensor = TensorProto(dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    with pytest.raises(BundleError, match="another file"):
        check_self_contained(_nested(Kind.TENSOR, tensor.SerializeToString(), rng), where="g")


@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused(raw: bytes) -> None:
    try:
        check_self_contained(raw, where="g")
    except BundleError as refused:
        assert refused.cure


@given(position=st.integers(0, 2000), flip=st.integers(1, 255))
def test_what_onnx_reads_as_pointing_elsewhere_is_refused(position: int, flip: int) -> None:
    """A changed byte may make a pointer; whatever the real parser then sees, the search must see."""
    model = front_end_model()
    model.graph.initializer[0].doc_string = "x" * 40
    raw = bytearray(model.SerializeToString())
    raw[position % len(raw)] ^= flip
    try:
        read = onnx.ModelProto.FromString(bytes(raw))
    except Exception:  # the parser's own error; nothing is loaded from these bytes
        return
    points = any(t.external_data or t.data_location for t in read.graph.initializer)
    if points:
        with pytest.raises(BundleError):
            check_self_contained(bytes(raw), where="g")


def test_a_very_deep_graph_is_searched_without_a_deep_stack() -> None:
    content = b""
    for _ in range(3000):
        content = b"".join((b"\x32", _varint(len(content)), content))  # an attribute's graph
        content = b"".join((b"\x2a", _varint(len(content)), content))  # a node's attribute
        content = b"".join((b"\x0a", _varint(len(content)), content))  # a graph's node
    check_self_contained(b"\x3a" + _varint(len(content)) + content, where="g")


def test_only_the_format_that_was_searched_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """ONNX Runtime's own format would be recognised by its first bytes; were it not searched, it must still be refused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "g.ort")
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(front_end_model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    monkeypatch.setattr(front_end, "check_self_contained", lambda graph, *, where: None)
    with pytest.raises(BundleError, match="cannot be loaded"):
        open_session((tmp_path / "g.ort").read_bytes())
