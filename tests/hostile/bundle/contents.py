"""Hostile contents: every hash is right, because the attacker made the bundle. Only a signature could tell who that was."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from hostile.bundle.attacks import attack
from hostile.bundle.folders import SECRET
from sf_contract.errors import SelfTestFailed
from sf_contract.limits import MAX_TOKENIZER_BYTES, MIB
from support.tiny_bundle import (
    HIDDEN,
    TOKEN_IDS,
    TOKENIZER,
    WORDS,
    canonical,
    constant,
    embedding_table,
    front_end_model,
    manifest_fields,
    node,
    replace_files,
    replace_manifest,
    tokenizer_bytes,
    value,
)

ELSEWHERE = "keeps weights in another file"
WORKING_FOLDER_FILE = "private.jsonl"
"""What lies in the working directory of the device program."""


def _external(location: str, *, name: str = "stolen") -> onnx.TensorProto:
    """A weight of `HIDDEN` numbers that are read from a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[HIDDEN], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", str(4 * HIDDEN))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    return tensor


def _adding(location: str) -> bytes:
    """The front end, with numbers from a file added to its rows: they go to the server with them."""
    add = node("Add", ["packed", "stolen"], "sum")
    return front_end_model(before_rows=[add], rows_from="sum", weights=[_external(location)]).SerializeToString()


@attack(ELSEWHERE)
def weights_from_a_file_outside(folder: Path) -> None:
    """ONNX lets weights lie in any file: the device sends its own secrets to the server, as activations."""
    replace_files(folder, graph=_adding(f"../{SECRET}"))


@attack(ELSEWHERE)
def weights_from_an_absolute_path(folder: Path) -> None:
    """The same."""
    replace_files(folder, graph=_adding("/etc/passwd"))


@attack(ELSEWHERE)
def weights_from_the_bundle_itself(folder: Path) -> None:
    """ONNX Runtime allows it, and the folder may by then hold what was not there when it was checked."""
    replace_files(folder, graph=_adding(TOKENIZER))


@attack(ELSEWHERE)
def weights_from_the_working_directory(folder: Path) -> None:
    """For a graph from memory, ONNX Runtime looks there: the very folder of the private texts."""
    replace_files(folder, graph=_adding(WORKING_FOLDER_FILE))


@attack(ELSEWHERE)
def weights_from_an_address_in_memory(folder: Path) -> None:
    """ONNX Runtime's own mark for "the offset is an address": whatever the process holds there."""
    replace_files(folder, graph=_adding("*/_ORT_MEM_ADDR_/*"))


@attack(ELSEWHERE)
def weights_from_a_file_in_a_constant_node(folder: Path) -> None:
    """A search of the graph's initializers alone does not see it."""
    stolen = node("Constant", [], "stolen", value=_external(f"../{SECRET}"))
    graph = front_end_model(before_rows=[stolen, node("Add", ["packed", "stolen"], "sum")], rows_from="sum")
    replace_files(folder, graph=graph.SerializeToString())


@attack(ELSEWHERE)
def weights_from_a_file_in_a_branch(folder: Path) -> None:
    """Graphs hold graphs."""
    output = [value("branch", TensorProto.FLOAT, [HIDDEN])]
    branch = helper.make_graph([node("Identity", ["stolen"], "branch")], "b", [], output, [_external(SECRET)])
    choose = node("If", ["always"], "stolen_rows", then_branch=branch, else_branch=branch)
    graph = front_end_model(
        before_rows=[choose, node("Add", ["packed", "stolen_rows"], "sum")],
        rows_from="sum",
        weights=[constant("always", True, np.bool_)],
    )
    replace_files(folder, graph=graph.SerializeToString())


@attack(ELSEWHERE)
def weights_from_a_file_in_a_function(folder: Path) -> None:
    """Functions travel beside the graph."""
    graph = front_end_model(before_rows=[node("Steal", ["packed"], "sum", domain="local")], rows_from="sum")
    body = [node("Constant", [], "stolen", value=_external(SECRET)), node("Add", ["x", "stolen"], "y")]
    function = helper.make_function("local", "Steal", ["x"], ["y"], body, [helper.make_opsetid("", 18)])
    graph.functions.append(function)
    graph.opset_import.append(helper.make_opsetid("local", 1))
    replace_files(folder, graph=graph.SerializeToString())


@attack(ELSEWHERE)
def weights_from_a_file_in_a_sparse_tensor(folder: Path) -> None:
    """A third kind of weight."""
    graph = front_end_model()
    sparse = graph.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_external(SECRET))
    sparse.dims.append(HIDDEN)
    replace_files(folder, graph=graph.SerializeToString())


@attack(ELSEWHERE)
def weights_from_a_file_in_a_second_graph(folder: Path) -> None:
    """Protocol Buffers merges a message that is given twice: whoever reads one of them sees half."""
    addition = onnx.ModelProto()
    addition.graph.initializer.append(_external(SECRET))
    replace_files(folder, graph=front_end_model().SerializeToString() + addition.SerializeToString())


@attack("is not an ONNX graph")
def a_graph_in_the_librarys_own_format(folder: Path) -> None:
    """ONNX Runtime recognises its format by the first bytes, and that too can point to files."""
    made = folder.parent / "graph.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(made)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(front_end_model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = made.read_bytes()
    assert graph[4:8] == b"ORTM"
    made.unlink()
    replace_files(folder, graph=graph)


@attack("is not an ONNX graph")
def a_program_instead_of_a_graph(folder: Path) -> None:
    """Whatever else a file can be."""
    replace_files(folder, graph=b"\x7fELF" + bytes(range(256)) * 4)


@attack("cannot be loaded")
def an_empty_graph(folder: Path) -> None:
    """An empty file is a valid Protocol Buffers message."""
    replace_files(folder, graph=b"")


@attack("is not an ONNX graph")
def a_graph_with_a_length_behind_its_end(folder: Path) -> None:
    """The oldest mistake of parsers: trusting a length."""
    replace_files(folder, graph=b"\x3a\xff\xff\xff\xff\x07" + bytes(100))


@attack("cannot be loaded")
def an_operator_that_does_not_exist(folder: Path) -> None:
    """An operator of the attacker's own needs the attacker's library; nothing here loads one."""
    graph = front_end_model(before_rows=[node("Backdoor", ["packed"], "sum", domain="evil")], rows_from="sum")
    graph.opset_import.append(helper.make_opsetid("evil", 1))
    replace_files(folder, graph=graph.SerializeToString())


@attack("a front end takes")
def token_ids_of_another_type(folder: Path) -> None:
    """The device would find out at the first text."""
    replace_files(folder, graph=front_end_model(ids_kind=TensorProto.INT32).SerializeToString())


@attack("a front end takes")
def a_graph_that_wants_more(folder: Path) -> None:
    """An input nobody feeds."""
    more = [value("labels", TensorProto.INT64, ["batch"])]
    replace_files(folder, graph=front_end_model(more_inputs=more).SerializeToString())


@attack("must give")
def rows_of_another_type(folder: Path) -> None:
    """Read as what the manifest says, they would be other numbers."""
    cast = node("Cast", ["packed"], "halves", to=TensorProto.FLOAT16)
    graph = front_end_model(before_rows=[cast], rows_from="halves", rows_kind=TensorProto.FLOAT16)
    replace_files(folder, graph=graph.SerializeToString())


@attack("must give")
def a_graph_that_gives_more(folder: Path) -> None:
    """A second output computed for every text, for nobody."""
    graph = front_end_model(
        before_rows=[node("Identity", ["packed"], "copy")],
        more_outputs=[value("copy", TensorProto.FLOAT, ["rows", HIDDEN])],
    )
    replace_files(folder, graph=graph.SerializeToString())


@attack("where the manifest promises")
def rows_of_another_width(folder: Path) -> None:
    """It declares the right width and computes another; NumPy would stretch one channel over all of them."""
    weights = [constant("first", [0], np.int64)]
    narrow = node("Gather", ["packed", "first"], "narrow", axis=1)
    graph = front_end_model(before_rows=[narrow], rows_from="narrow", rows_shape=("rows", "columns"), weights=weights)
    replace_files(folder, graph=graph.SerializeToString())


@attack("where the manifest promises")
def more_rows_than_tokens(folder: Path) -> None:
    """Rows of one sample would be counted as rows of the next."""
    twice = node("Concat", ["packed", "packed"], "twice", axis=0)
    replace_files(folder, graph=front_end_model(before_rows=[twice], rows_from="twice").SerializeToString())


@attack("where the manifest promises")
def rows_with_an_axis_too_many(folder: Path) -> None:
    """Code that looks only at the first two sizes takes it."""
    weights = [constant("last", [2], np.int64)]
    deep = node("Unsqueeze", ["packed", "last"], "deep")
    graph = front_end_model(before_rows=[deep], rows_from="deep", rows_shape=("rows", HIDDEN, 1), weights=weights)
    replace_files(folder, graph=graph.SerializeToString())


@attack("cannot be computed")
def a_graph_that_fails_when_it_runs(folder: Path) -> None:
    """It loads; an index computed from the tokens lies behind the table."""
    weights = [constant("far", [1000], np.int64)]
    graph = front_end_model(before_rows=[node("Gather", ["packed", "far"], "x")], rows_from="x", weights=weights)
    replace_files(folder, graph=graph.SerializeToString())


@attack("cannot be")
def a_graph_that_wants_an_exabyte(folder: Path) -> None:
    """A few bytes can ask for any amount of memory; asked for at once, it is refused at once."""
    weights = [constant("shape", [2**30, 2**28], np.int64)]
    fill = node("ConstantOfShape", ["shape"], "zeros")
    total = node("ReduceSum", ["zeros"], "sum", keepdims=0)
    graph = front_end_model(
        before_rows=[fill, total, node("Add", ["packed", "sum"], "x")], rows_from="x", weights=weights
    )
    replace_files(folder, graph=graph.SerializeToString())


@attack("test vectors", code=SelfTestFailed.exit_code)
def rows_that_are_not_numbers(folder: Path) -> None:
    """NaN is never larger than a limit."""
    weights = [constant("nan", np.nan, np.float32)]
    graph = front_end_model(before_rows=[node("Add", ["packed", "nan"], "x")], rows_from="x", weights=weights)
    replace_files(folder, graph=graph.SerializeToString())


@attack("test vectors", code=SelfTestFailed.exit_code)
def the_front_end_of_another_model(folder: Path) -> None:
    """Right in every size and type; only computing shows it."""
    weights = [constant("scale", 2.0, np.float32)]
    graph = front_end_model(before_rows=[node("Mul", ["packed", "scale"], "x")], rows_from="x", weights=weights)
    replace_files(folder, graph=graph.SerializeToString())


@attack("not finite")
def vectors_that_are_not_numbers(folder: Path) -> None:
    """The error against NaN is NaN."""
    rows = embedding_table()[[i for ids in TOKEN_IDS for i in ids]]
    rows[0, 0] = np.nan
    replace_files(folder, vectors=rows.tobytes())


@attack("not finite")
def vectors_without_end(folder: Path) -> None:
    """The error relative to an infinite row is no number either."""
    rows = embedding_table()[[i for ids in TOKEN_IDS for i in ids]]
    rows[0, 0] = np.inf
    replace_files(folder, vectors=rows.tobytes())


@attack("is not a tokenizer")
def a_tokenizer_that_is_no_json(folder: Path) -> None:
    """The library's error is a bare Exception."""
    replace_files(folder, tokenizer=os.urandom(64))


@attack("is not a tokenizer")
def a_tokenizer_of_other_json(folder: Path) -> None:
    """Valid JSON of something else."""
    replace_files(folder, tokenizer=b'{"name": "a web page"}')


@attack("is not a tokenizer")
def a_deeply_nested_tokenizer(folder: Path) -> None:
    """As for the manifest, in another parser."""
    replace_files(folder, tokenizer=b'{"model":' * 100_000)


def _packed_tokenizer(folder: Path, content: bytes) -> None:
    """A tokenizer file that says it is compressed."""
    (folder / TOKENIZER).unlink()
    (folder / f"{TOKENIZER}.gz").write_bytes(content)
    fields = manifest_fields(folder)
    fields["tokenizer_file"] = f"{TOKENIZER}.gz"
    entry = next(file for file in fields["files"] if file["name"] == TOKENIZER)
    entry.update(name=f"{TOKENIZER}.gz", nbytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    replace_manifest(folder, canonical(fields))


@attack("unpacks to more than", memory_bytes=3 * MAX_TOKENIZER_BYTES)
def a_tokenizer_that_unpacks_without_end(folder: Path) -> None:
    """Zeros shrink a thousandfold: the manifest's sizes say nothing about what is inside."""
    packer = zlib.compressobj(level=1, wbits=zlib.MAX_WBITS | 16)
    parts = [packer.compress(bytes(MIB)) for _ in range(MAX_TOKENIZER_BYTES // MIB + 1)]
    _packed_tokenizer(folder, b"".join(parts) + packer.flush())


@attack("is cut off")
def a_packed_tokenizer_with_something_behind_it(folder: Path) -> None:
    """Unpacking programs differ in what they do with a second part."""
    _packed_tokenizer(folder, gzip.compress(tokenizer_bytes()) + gzip.compress(b"more"))


@attack("is cut off")
def half_a_packed_tokenizer(folder: Path) -> None:
    """What came until then would be used."""
    _packed_tokenizer(folder, gzip.compress(tokenizer_bytes())[:40])


@attack("is not gzip")
def a_tokenizer_that_only_says_it_is_packed(folder: Path) -> None:
    """The library's error is of its own type."""
    _packed_tokenizer(folder, tokenizer_bytes())


@attack("the model knows 8 tokens")
def a_tokenizer_of_a_larger_model(folder: Path) -> None:
    """Token ids behind the end of the embedding table, found only by a text that contains the word."""
    replace_files(folder, tokenizer=tokenizer_bytes([*WORDS, "kitchen"]))
