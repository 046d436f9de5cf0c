"""One turn on the clock, and the memory that was needed so far."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence

import torch

from sf_bench.training.protocol import Turn


class Meter:
    """Measures one turn after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began_s = self._began_cpu_s = 0.0

    def start(self) -> None:
        """A turn begins."""
        self._wait_for_device()
        self._began_s, self._began_cpu_s = time.perf_counter(), time.process_time()

    def finish(self, *, tokens: int, losses: Sequence[float]) -> Turn:
        """The turn that began last is over."""
        self._wait_for_device()
        return Turn(
            seconds=time.perf_counter() - self._began_s,
            cpu_s=time.process_time() - self._began_cpu_s,
            tokens=tokens,
            losses=tuple(losses),
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            device_mb=torch.cuda.max_memory_allocated(self._device) / 2**20 if self._device.type == "cuda" else 0.0,
        )

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
