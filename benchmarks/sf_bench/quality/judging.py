"""How good a published adapter is: behind a front end, as devices are answered, or alone in the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sf_bench.quality.results import CompletionLoss, Evaluation
from sf_bench.quality.server_run import RowsOf
from sf_contract.activations import NO_TARGET
from sf_contract.bundle import Bundle
from sf_contract.samples import TokenizedSample
from sf_model.back import BackEnd
from sf_model.checkpoint import Checkpoint, load_model
from sf_server.store.stored import StoredSample
from sf_server.training.batch_tensors import make_batch
from sf_server.training.lora import attach_published, load_adapter

EVALUATION_TOKENS: Final = 2048

Batches = Sequence[Sequence[StoredSample]]


@dataclass(frozen=True, slots=True)
class Answered:
    """Classification of the validation samples: how right, and the class that was answered to each."""

    evaluation: Evaluation
    answers: tuple[int, ...]


def judged_rows(samples: Sequence[TokenizedSample], rows_of: RowsOf) -> list[list[StoredSample]]:
    """Validation samples with their rows, shortest first, in batches; each is computed alone, as on a device."""
    batches: list[list[StoredSample]] = [[]]
    for seq in sorted(range(len(samples)), key=lambda index: (len(samples[index].token_ids), index)):
        sample = samples[seq]
        if (len(batches[-1]) + 1) * len(sample.token_ids) > EVALUATION_TOKENS and batches[-1]:
            batches.append([])
        rows = rows_of(sample.token_ids)
        batches[-1].append(StoredSample(seq=seq, device="file", rows=rows, label=sample.label, targets=sample.targets))
    return batches


def adapted_back_end(
    checkpoint: Checkpoint, bundle: Bundle, adapter: Path, *, dtype: torch.dtype, device: torch.device
) -> BackEnd:
    """The layers behind the bundle's cut with a published adapter."""
    manifest = bundle.manifest
    model = load_model(checkpoint, task=manifest.task.task, dtype=dtype, labels=manifest.task.labels).model
    back_end = BackEnd(model, manifest.geometry.split_layer)
    load_adapter(back_end, adapter)
    back_end.to(device)
    return back_end


def standalone(checkpoint: Checkpoint, bundle: Bundle, adapter: Path) -> nn.Module:
    """The whole model in fp32 with a published adapter, as a user of plain PEFT loads it."""
    spec = bundle.manifest.task
    model = load_model(checkpoint, task=spec.task, dtype=torch.float32, labels=spec.labels).model
    return attach_published(model, adapter).eval()


def evaluate(back_end: BackEnd, batches: Iterable[Sequence[StoredSample]], *, device: torch.device) -> Evaluation:
    """Which samples the back end gets right, in `seq` order; every `seq` from 0 must occur once."""
    return answered(back_end, batches, device=device).evaluation


def answered(back_end: BackEnd, batches: Iterable[Sequence[StoredSample]], *, device: torch.device) -> Answered:
    """The same with the answers themselves."""
    found = {
        sample.seq: (logits, sample.label)
        for samples in batches
        for sample, logits in zip(samples, _logits(back_end, samples, device), strict=True)
    }
    return _answered([found[seq] for seq in range(len(found))])


def completion_loss(
    back_end: BackEnd, batches: Iterable[Sequence[StoredSample]], *, device: torch.device
) -> CompletionLoss:
    """Loss of every completion behind a front end, in `seq` order."""
    found: dict[int, tuple[float, int]] = {}
    for samples in batches:
        batch = make_batch(samples, back_end, device)
        for index, logits in enumerate(_forward(back_end, batch.rows, batch.mask)):
            found[samples[index].seq] = _summed(logits, batch.labels[index])
    return _completion_loss([found[seq] for seq in range(len(found))])


def evaluate_whole(model: nn.Module, samples: Sequence[TokenizedSample]) -> Evaluation:
    """Which samples the whole model gets right. Batches hold samples of one length, so nothing is padded."""
    return answered_whole(model, samples).evaluation


def answered_whole(model: nn.Module, samples: Sequence[TokenizedSample]) -> Answered:
    """The same with the answers themselves."""
    found = {index: (logits, sample.label) for index, sample, logits in _whole_logits(model, samples)}
    return _answered([found[index] for index in range(len(samples))])


def whole_completion_loss(model: nn.Module, samples: Sequence[TokenizedSample]) -> CompletionLoss:
    """Loss of every completion in the whole model."""
    found = {
        index: _summed(logits, torch.tensor(np.array(sample.targets, dtype=np.int64)))
        for index, sample, logits in _whole_logits(model, samples)
    }
    return _completion_loss([found[index] for index in range(len(samples))])


@torch.no_grad()
def _forward(back_end: BackEnd, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    back_end.model.train(False)
    logits: torch.Tensor = back_end(rows, mask)
    return logits


def _logits(back_end: BackEnd, samples: Sequence[StoredSample], device: torch.device) -> torch.Tensor:
    batch = make_batch(samples, back_end, device)
    return _forward(back_end, batch.rows, batch.mask)


@torch.no_grad()
def _whole_logits(
    model: nn.Module, samples: Sequence[TokenizedSample]
) -> Iterator[tuple[int, TokenizedSample, torch.Tensor]]:
    model.train(False)
    by_length = sorted(range(len(samples)), key=lambda index: len(samples[index].token_ids))
    for length, group in groupby(by_length, key=lambda index: len(samples[index].token_ids)):
        alike = list(group)
        most = max(1, EVALUATION_TOKENS // length)
        for part in (alike[start : start + most] for start in range(0, len(alike), most)):
            input_ids = torch.tensor([samples[index].token_ids for index in part])
            logits = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
            for index, found in zip(part, logits, strict=True):
                yield index, samples[index], found


def _hit_and_loss(logits: torch.Tensor, label: int | None) -> tuple[bool, float]:
    loss = cross_entropy(logits.float(), torch.tensor(label, device=logits.device))
    return int(logits.argmax()) == label, float(loss)


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, int]:
    counted = targets != NO_TARGET
    loss = cross_entropy(logits.float(), targets, ignore_index=NO_TARGET, reduction="sum")
    return float(loss), int(counted.sum())


def _answered(found: Sequence[tuple[torch.Tensor, int | None]]) -> Answered:
    """From the logits `[classes]` and the label of every sample."""
    judged = [_hit_and_loss(logits, label) for logits, label in found]
    evaluation = Evaluation(hits=tuple(hit for hit, _ in judged), loss=sum(loss for _, loss in judged) / len(judged))
    return Answered(evaluation=evaluation, answers=tuple(int(logits.argmax()) for logits, _ in found))


def _completion_loss(judged: Sequence[tuple[float, int]]) -> CompletionLoss:
    return CompletionLoss(loss_sums=tuple(loss for loss, _ in judged), targets=tuple(count for _, count in judged))
