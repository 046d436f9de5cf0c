"""Worker that makes OpenVINO's int8 models with NNCF, once. Standard library, NumPy, openvino and nncf only."""

from __future__ import annotations

import importlib
from pathlib import Path

from sf_bench.rivals.protocol import Job
from sf_bench.rivals.runtime_openvino import OpenVinoRuntime, feeds_of
from sf_bench.rivals.runtime_openvino import open_runtime as open_openvino


def open_runtime(job: Job) -> OpenVinoRuntime:
    """Quantize, save, open what was saved.

    Options: `source` (fp32 ONNX graph), `how` (`weights`: int8 weights alone; `full`: weights and activations, calibrated
    on the job's windows, with NNCF's settings for transformers), `graph` (the .xml file to write), `precision`.
    """
    openvino = importlib.import_module("openvino")
    nncf = importlib.import_module("nncf")
    model = openvino.Core().read_model(job.options["source"])
    match job.options["how"]:
        case "weights":
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        case "full":
            windows = nncf.Dataset([feeds_of(window) for window in job.windows])
            size = len(job.windows)
            model = nncf.quantize(model, windows, model_type=nncf.ModelType.TRANSFORMER, subset_size=size)
        case unknown:
            raise ValueError(f"unknown way to quantize: {unknown!r}")
    target = Path(job.options["graph"])
    target.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, target, compress_to_fp16=False)
    return open_openvino(job)
