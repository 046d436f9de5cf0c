"""Class probabilities of texts whose rows came from devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from sf_contract.bundle import Bundle
from sf_contract.codec import EncodedRows
from sf_contract.int4 import Int4Parameters
from sf_model.back import BackEnd
from sf_server.results.trained import TrainedModel
from sf_server.serving.desk import Job, Probabilities
from sf_server.training.batch_tensors import decode_to_tensor


class Classifier:
    """The trained back end of each bundle.

    Args:
        bundles: those whose rows are understood; they share the model's weights.
        max_tokens: padded tokens that are computed together; a single text may have more.
    """

    def __init__(
        self, trained: TrainedModel, bundles: Sequence[Bundle], *, device: torch.device, max_tokens: int
    ) -> None:
        self._back_ends: Mapping[str, BackEnd] = {bundle.bundle_id: trained.back_end(bundle) for bundle in bundles}
        self._int4: Mapping[str, Int4Parameters | None] = {
            bundle.bundle_id: bundle.int4_parameters() for bundle in bundles
        }
        self._device = device
        self._max_tokens = max_tokens

    def of_jobs(self, jobs: Sequence[Job]) -> list[list[Probabilities]]:
        """Probabilities of the usable texts of each job; texts of different devices are computed together."""
        found: list[list[Probabilities]] = [[] for _ in jobs]
        for bundle_id in dict.fromkeys(job.request.bundle_id for job in jobs):
            owners = [n for n, job in enumerate(jobs) if job.request.bundle_id == bundle_id for _ in job.usable]
            texts = [text for job in jobs if job.request.bundle_id == bundle_id for text in job.usable]
            for owner, probabilities in zip(owners, self.probabilities(bundle_id, texts), strict=True):
                found[owner].append(probabilities)
        return found

    def probabilities(self, bundle_id: str, texts: Sequence[EncodedRows]) -> list[Probabilities]:
        """float32 `[classes]` of each text, in their order."""
        found: dict[int, Probabilities] = {}
        by_length = sorted(range(len(texts)), key=lambda index: texts[index].tokens)
        for group in _groups(by_length, texts, self._max_tokens):
            computed = self._compute(bundle_id, [texts[index] for index in group])
            found.update(zip(group, computed, strict=True))
        return [found[index] for index in range(len(texts))]

    @torch.no_grad()
    def _compute(self, bundle_id: str, texts: Sequence[EncodedRows]) -> Probabilities:
        back_end, int4 = self._back_ends[bundle_id], self._int4[bundle_id]
        rows, mask = back_end.pad([decode_to_tensor(replace(text, int4=int4)) for text in texts])
        logits = back_end(rows.to(self._device), mask.to(self._device))
        probabilities: Probabilities = torch.softmax(logits.float(), dim=-1).cpu().numpy().astype(np.float32)
        return probabilities


def _groups(order: Sequence[int], texts: Sequence[EncodedRows], max_tokens: int) -> Iterator[list[int]]:
    """Groups of at most `max_tokens` padded tokens; lengths in `order` do not fall."""
    group: list[int] = []
    for index in order:
        if group and (len(group) + 1) * texts[index].tokens > max_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
