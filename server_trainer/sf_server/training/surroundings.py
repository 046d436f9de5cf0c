"""What the training loop needs of the world outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sf_server.scale.together import Together
from sf_server.store.stored import SampleInfo
from sf_server.training.feed import Feed, SampleSource


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the loop needs of the world outside.

    Attributes:
        say: tells the person watching.
        clock: seconds, monotonic.
        stopped: True once training should save and leave.
        wait: waits some seconds, or less when stopped.
        train_device: where the model is.
        feed: brings the batches; None: straight from the store.
        together: other nodes that train the same weights; None: there are none.
        source: where held-out samples are read; None: straight from the store.
        prepare: called with the samples of a window, or those held out, before any of them is read. What it raises as
            `DiskFull` is waited for.
        tidy: called when no window is open, so when no sample is about to be read; may remove samples from the store.
    """

    say: Callable[[str], None]
    stopped: Callable[[], bool]
    wait: Callable[[float], object]
    train_device: torch.device
    clock: Callable[[], float] = time.monotonic
    feed: Feed | None = None
    together: Together | None = None
    source: SampleSource | None = None
    prepare: Callable[[Sequence[SampleInfo]], object] = len
    tidy: Callable[[], object] = bool
