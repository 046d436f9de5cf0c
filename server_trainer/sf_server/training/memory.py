"""Which settings decide how much memory training needs. Needs no torch."""

from __future__ import annotations

from sf_server.settings import TrainSettings


def memory_cure(settings: TrainSettings) -> str:
    """What to lower, and what it is now."""
    half = max(1, (settings.micro_batch_tokens or settings.batch_tokens) // 2)
    return (
        f"lower --batch-tokens (now {settings.batch_tokens}; try {max(1, settings.batch_tokens // 2)}), or let batches be "
        f"computed in parts with --micro-batch-tokens {half}"
    )
