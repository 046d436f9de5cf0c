"""The one door to ONNX Runtime: run a bundle's front end. Import this module only where an extra brings onnxruntime.

Official ONNX Runtime wheels report usage by default, and only an environment variable that is set before the import
prevents it; so it is set here, before the only import of the library in the project.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from sf_contract.bundle import Bundle
from sf_contract.codec import (
    EncodedRows,
    WireCodec,
    decode_rows,
    has_scales,
    relative_row_errors,
    row_columns,
    row_dtype,
    scale_dtype,
    scale_groups,
)
from sf_contract.errors import BundleError, SelfTestFailed
from sf_contract.graph_file import check_self_contained
from sf_contract.int4 import Int4Parameters

RUNTIME_VERSION: str = onnxruntime.__version__


_TENSOR_TYPES: Final = {
    "int64": "tensor(int64)",
    "int8": "tensor(int8)",
    "uint8": "tensor(uint8)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
}
"""ONNX Runtime's names of NumPy dtypes."""
_INPUT_TYPES: Final = dict.fromkeys(("input_ids", "attention_mask", "row_index"), _TENSOR_TYPES["int64"])


def open_session(graph: bytes, *, threads: int = 1, where: str = "the graph") -> onnxruntime.InferenceSession:
    """A session on the processor; idle threads sleep, they do not spin.

    Raises:
        BundleError: the graph is not complete in itself, or ONNX Runtime refuses it.
    """
    check_self_contained(graph, where=where)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The library's own pool would keep what the longest text ever needed; without it the speed is the same.
    options.enable_cpu_mem_arena = False
    # Never guess from the first bytes: the library's own format was not searched for pointers to other files.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.log_severity_level = 4  # what goes wrong is raised; it need not be printed as well
    try:
        session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], read_config_from_model=0
        )
    except Exception as problem:  # the library's own error types derive from bare Exception
        raise BundleError(f"{where} cannot be loaded: {problem}", cure="export the bundle again") from problem
    session._model_bytes = None  # the library would keep the file in memory as long as the session lives
    return session


class FrontEnd:
    """A front-end graph in an ONNX Runtime session.

    Args:
        graph: the content of the ONNX file.
        codec: encoding of the graph's output rows.
        int4: the bundle's parameters of the codec int4, so that its rows can be decoded.
        threads: intra-op threads; idle threads sleep, they do not spin.
        hidden: channels per row; when given, rows of any other size are refused.
        where: what errors call the graph.

    Raises:
        BundleError: the graph cannot be loaded, or has other inputs or outputs than a front end.
    """

    def __init__(
        self,
        graph: bytes,
        *,
        codec: WireCodec,
        int4: Int4Parameters | None = None,
        threads: int = 1,
        hidden: int | None = None,
        where: str = "the graph",
    ) -> None:
        self._session = open_session(graph, threads=threads, where=where)
        self._codec, self._int4, self._hidden, self._where = codec, int4, hidden, where
        self._output_names = ["rows", "scales"] if has_scales(codec) else ["rows"]
        self._check_interface()

    def run(self, sequences: Sequence[Sequence[int]]) -> list[EncodedRows]:
        """Activations at the cut of each token sequence, encoded for the wire; padding never leaves this method.

        Raises:
            BundleError: the graph cannot be computed, or gives rows of another shape than it should.
        """
        lengths = [len(sequence) for sequence in sequences]
        input_ids, mask = _pad(sequences, lengths)
        feeds = {"input_ids": input_ids, "attention_mask": mask, "row_index": np.flatnonzero(mask)}
        try:
            outputs = self._session.run(self._output_names, feeds)
        except Exception as problem:  # as above
            raise self._unfit(f"cannot be computed: {problem}") from problem
        scales = outputs[1] if len(outputs) == 2 else np.zeros((sum(lengths), 0), dtype=np.float32)
        packed = EncodedRows(codec=self._codec, rows=outputs[0], scales=scales, int4=self._int4)
        self._check_shapes(packed, tokens=sum(lengths))
        stops = np.cumsum(lengths).tolist()
        return [packed.part(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]

    def _check_interface(self) -> None:
        outputs = {"rows": row_dtype(self._codec), "scales": scale_dtype(self._codec)}
        expected = {name: _TENSOR_TYPES[outputs[name].name] for name in self._output_names}
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        found = {value.name: value.type for value in self._session.get_outputs()}
        if inputs != _INPUT_TYPES:
            raise self._unfit(f"takes {inputs}; a front end takes {_INPUT_TYPES}")
        if found != expected:
            raise self._unfit(f"gives {found}; with rows in {self._codec.value} it must give {expected}")

    def _check_shapes(self, packed: EncodedRows, *, tokens: int) -> None:
        if self._hidden is None:
            return
        expected = (tokens, row_columns(self._codec, self._hidden)), (tokens, scale_groups(self._codec, self._hidden))
        found = packed.rows.shape, packed.scales.shape
        if found != expected:
            raise self._unfit(f"gives rows and scales of shapes {found} where the manifest promises {expected}")

    def _unfit(self, what: str) -> BundleError:
        return BundleError(f"{self._where} {what}", cure="export the bundle again, with sf-export")


def open_front_end(bundle: Bundle, *, threads: int = 1) -> FrontEnd:
    """The front end of a verified bundle.

    Raises:
        BundleError: its graph is not one of a front end, or its files were changed since the bundle was opened.
    """
    return FrontEnd(
        bundle.read(bundle.manifest.graph_file),
        codec=bundle.manifest.wire_codec,
        int4=bundle.int4_parameters(),
        threads=threads,
        hidden=bundle.manifest.geometry.hidden,
        where=str(bundle.graph_path),
    )


def run_self_test(bundle: Bundle, front_end: FrontEnd) -> float:
    """Mean relative error of this machine's rows on the bundle's test vectors.

    Raises:
        SelfTestFailed: it is above the bundle's limit, so activations from this machine would not fit the back end.
    """
    vectors = bundle.manifest.self_test
    measured = np.concatenate([decode_rows(front_end.run([ids])[0]) for ids in vectors.token_ids])
    error = float(relative_row_errors(measured, bundle.self_test_rows()).mean())
    if not error <= vectors.max_mean_error:
        raise SelfTestFailed(
            f"this machine computes the bundle's test vectors with {error:.2%} mean error; "
            f"the bundle allows {vectors.max_mean_error:.2%}",
            cure="export a bundle for this kind of processor, or with --quantize none",
        )
    return error


def _pad(
    sequences: Sequence[Sequence[int]], lengths: Sequence[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    shape = (len(sequences), max(lengths))
    input_ids = np.zeros(shape, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return input_ids, mask
