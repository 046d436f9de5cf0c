"""The control of a study: centralised LoRA on the same samples, in the same layers, in the same steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from sf_bench.quality.central import CentralTraining, unused_token
from sf_bench.quality.rehearsal import rehearse
from sf_bench.quality.results import Effort
from sf_bench.quality.server_run import Say
from sf_bench.studies.study import Opened
from sf_contract.samples import TokenizedSample
from sf_model.checkpoint import load_model
from sf_server.settings import TrainSettings

REPORT_EVERY_S: Final = 30.0


def train_control(
    opened: Opened,
    samples: Sequence[TokenizedSample],
    settings: TrainSettings,
    *,
    names: Sequence[str],
    holders: Sequence[int],
    say: Say,
) -> tuple[nn.Module, Effort]:
    """The trained whole model in fp32; what was begun before an interruption is begun anew.

    Args:
        settings: those of the server's run that it is the control of.
        names: of the devices, whose samples the server would have pooled.
        holders: who holds which sample.
    """
    began_s = said_s = time.monotonic()
    spec = opened.deepest.manifest.task
    loaded = load_model(opened.checkpoint, task=spec.task, dtype=torch.float32, labels=spec.labels, seed=settings.seed)
    vocabulary = opened.deepest.manifest.geometry.vocabulary
    control = CentralTraining(
        loaded,
        settings,
        task=spec.task,
        first_layer=opened.first_layer,
        padding=unused_token([*samples, *opened.phrases.validation], vocabulary=vocabulary),
    )
    plan = rehearse(samples, settings, names=names, holders=holders)
    say(f"training the whole model centrally, {len(plan)} steps")
    for number, loss in enumerate(control.train(samples, plan), 1):
        if time.monotonic() - said_s >= REPORT_EVERY_S:
            said_s = time.monotonic()
            say(f"step {number} of {len(plan)}, loss {loss:.4f}")
    tokens = sum(len(samples[index].token_ids) for step in plan for index in step.samples)
    return control.model, Effort(steps=len(plan), tokens=tokens, seconds=time.monotonic() - began_s)
