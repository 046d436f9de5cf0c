"""A batch in parts of bounded size, for one step with the memory of a part: the gradient is that of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator

from sf_model.back import PadSide
from sf_server.training.batch_tensors import BatchTensors


def slices_of(batch: BatchTensors, side: PadSide, *, max_tokens: int | None) -> Iterator[BatchTensors]:
    """Neighbouring samples of a batch, at most `max_tokens` with their padding; a longer sample goes alone.

    Each part is cut to its own longest sample. None gives the batch itself.
    """
    if max_tokens is None or batch.mask.numel() <= max_tokens:
        yield batch
        return
    lengths: list[int] = batch.mask.sum(dim=1).tolist()
    start, longest = 0, 0
    for index, length in enumerate(lengths):
        longest_yet = max(longest, length)
        if index > start and (index + 1 - start) * longest_yet > max_tokens:
            yield _part(batch, side, start=start, stop=index, length=longest)
            start, longest_yet = index, length
        longest = longest_yet
    yield _part(batch, side, start=start, stop=len(lengths), length=longest)


def _part(batch: BatchTensors, side: PadSide, *, start: int, stop: int, length: int) -> BatchTensors:
    tokens = slice(-length, None) if side is PadSide.LEFT else slice(length)
    mask, labels = batch.mask[start:stop, tokens], batch.labels[start:stop]
    return BatchTensors(
        rows=batch.rows[start:stop, tokens],
        mask=mask,
        labels=labels if labels.ndim == 1 else labels[:, tokens],
        tokens=int(mask.sum()),
        weights=None if batch.weights is None else batch.weights[start:stop],
    )
