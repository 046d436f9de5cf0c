"""Worker for OpenVINO. It may run in another environment: standard library, NumPy and openvino only."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from sf_bench.rivals.protocol import FloatRows, Job, Times, timed

Feeds = dict[str, np.typing.NDArray[np.int64]]


def feeds_of(token_ids: tuple[int, ...]) -> Feeds:
    """Inputs of the front-end graph for one sequence."""
    ids = np.array([token_ids], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "row_index": np.arange(len(token_ids))}


class OpenVinoRuntime:
    """A compiled graph with dynamic shapes, as ours is."""

    def __init__(self, infer_request: Any, version: str) -> None:
        self._request = infer_request
        self.version = version

    def run(self, token_ids: tuple[int, ...]) -> Times:
        """Times of one run."""
        return timed(lambda: self._request.infer(feeds_of(token_ids), share_inputs=True))

    def rows(self, token_ids: tuple[int, ...]) -> FloatRows:
        """Hidden states at the cut."""
        self._request.infer(feeds_of(token_ids))
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)


def open_runtime(job: Job) -> OpenVinoRuntime:
    """Options: `graph` (ONNX or OpenVINO file), `precision` (`f32`, or empty for OpenVINO's own choice)."""
    openvino = importlib.import_module("openvino")
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if job.options["precision"]:
        config["INFERENCE_PRECISION_HINT"] = job.options["precision"]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(job.options["graph"]), "CPU", config)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    version = f"OpenVINO {openvino.__version__.partition('-')[0]}, computes in {used}"
    return OpenVinoRuntime(compiled.create_infer_request(), version)
