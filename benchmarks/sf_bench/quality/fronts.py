"""What computes rows: a bundle's own graph, as a device runs it, or the base model's first layers in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sf_bench.quality.server_run import RowsOf
from sf_contract.bundle import Bundle
from sf_contract.codec import EncodedRows, WireCodec
from sf_contract.front_end import open_front_end, run_self_test
from sf_model.checkpoint import Checkpoint, load_model
from sf_model.front import FrontModel, cut_front


def bundle_rows(bundle: Bundle, *, threads: int) -> RowsOf:
    """One sample at a time, in the wire's encoding.

    Raises:
        SelfTestFailed: this machine computes the graph in another way than it was tested.
    """
    front_end = open_front_end(bundle, threads=threads)
    run_self_test(bundle, front_end)
    return lambda token_ids: front_end.run([token_ids])[0]


def exact_rows(checkpoint: Checkpoint, bundle: Bundle) -> RowsOf:
    """PyTorch, fp32, not rounded for the wire, at the bundle's cut."""
    spec = bundle.manifest.task
    whole = load_model(checkpoint, task=spec.task, dtype=torch.float32, labels=spec.labels)
    front = cut_front(whole.model, bundle.manifest.geometry.split_layer)
    return lambda token_ids: _exact(front, token_ids)


@torch.no_grad()
def _exact(front: FrontModel, token_ids: Sequence[int]) -> EncodedRows:
    input_ids = torch.tensor([list(token_ids)])
    rows = front(input_ids, torch.ones_like(input_ids))[0].numpy()
    return EncodedRows(codec=WireCodec.FP32, rows=rows, scales=np.zeros((len(rows), 0), dtype=np.float32))
