"""Worker for PyTorch in eager mode: the reference, and the rival with the shortest way from the checkpoint."""

from __future__ import annotations

import torch

from sf_bench.rivals.protocol import FloatRows, Job, Times, timed
from sf_model.checkpoint import load_model, open_checkpoint
from sf_model.front import FrontModel, cut_front


class TorchRuntime:
    """The cut model, called without gradients."""

    def __init__(self, front: FrontModel) -> None:
        self._front = front
        self.version = f"PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"

    def run(self, token_ids: tuple[int, ...]) -> Times:
        """Times of one run."""
        return timed(lambda: self._run(token_ids))

    def rows(self, token_ids: tuple[int, ...]) -> FloatRows:
        """Hidden states at the cut, as fp32."""
        rows: FloatRows = self._run(token_ids)[0].float().numpy()
        return rows

    def _run(self, token_ids: tuple[int, ...]) -> torch.Tensor:
        input_ids = torch.tensor([token_ids])
        with torch.inference_mode():
            rows: torch.Tensor = self._front(input_ids, torch.ones_like(input_ids))
        return rows


def open_runtime(job: Job) -> TorchRuntime:
    """Options: `model`, `revision` (may be empty), `split_layer`, `dtype` (float32 or bfloat16)."""
    torch.set_num_threads(job.threads)
    checkpoint = open_checkpoint(job.options["model"], revision=job.options["revision"] or None)
    whole = load_model(checkpoint, task=None, dtype=torch.float32).model
    front = cut_front(whole, int(job.options["split_layer"]))
    return TorchRuntime(front.to(getattr(torch, job.options["dtype"])))
