"""The one door to ONNX Runtime: run a bundle's front end. Import this module only where an extra brings onnxruntime.

Official ONNX Runtime wheels report usage by default, and only an environment variable that is set before the import
prevents it; so it is set here, before the only import of the library in the project.
"""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from sf_contract.bundle import Bundle
from sf_contract.codec import EncodedRows, WireCodec, decode_rows, relative_row_errors
from sf_contract.errors import BundleError, SelfTestFailed

RUNTIME_VERSION: str = onnxruntime.__version__


class FrontEnd:
    """A front-end graph in an ONNX Runtime session.

    Args:
        graph: the ONNX file, or its bytes.
        codec: encoding of the graph's output rows.
        threads: intra-op threads; idle threads sleep, they do not spin.
    """

    def __init__(self, graph: Path | bytes, *, codec: WireCodec, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        source = graph if isinstance(graph, bytes) else str(graph)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # the library's own error types derive from bare Exception
            where = graph if isinstance(graph, Path) else "the graph"
            raise BundleError(f"{where} cannot be loaded: {problem}", cure="export the bundle again") from problem
        self._codec = codec
        self._output_names = ["rows", "scales"] if codec is WireCodec.INT8 else ["rows"]

    def run(self, sequences: Sequence[Sequence[int]]) -> list[EncodedRows]:
        """Activations at the cut of each token sequence, encoded for the wire; padding never leaves this method."""
        lengths = [len(sequence) for sequence in sequences]
        input_ids, mask = _pad(sequences, lengths)
        feeds = {"input_ids": input_ids, "attention_mask": mask, "row_index": np.flatnonzero(mask)}
        outputs = self._session.run(self._output_names, feeds)
        scales = outputs[1] if len(outputs) == 2 else np.zeros((sum(lengths), 0), dtype=np.float32)
        packed = EncodedRows(codec=self._codec, rows=outputs[0], scales=scales)
        stops = np.cumsum(lengths).tolist()
        return [packed.part(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]


def open_front_end(bundle: Bundle, *, threads: int = 1) -> FrontEnd:
    """The front end of a verified bundle."""
    return FrontEnd(bundle.graph_path, codec=bundle.manifest.wire_codec, threads=threads)


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
