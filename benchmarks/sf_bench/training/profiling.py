"""Where a training step spends its time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from sf_bench.training.protocol import Profile

ROWS: Final = 20
_PRODUCTS: Final = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
_COPIES: Final = ("copy", "clone", "index", "cat", "gather", "scatter", "fill", "zero")
_KINDS: Final = {"scaled_dot_product": "attention", "Optimizer": "optimizer", **dict.fromkeys(_COPIES, "copies")}
_OTHER: Final = "element by element, norms, and calls of operators"


def profile_of(work: Callable[[], object], *, rank: int, vocabulary: int) -> Profile:
    """Profile some work.

    Args:
        rank: of LoRA, to tell its products from those of the frozen weights.
        vocabulary: to tell the head's products.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as found:
        work()
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times: Counter[str] = Counter()
    for event in found.key_averages(group_by_input_shape=True):
        times[kind_of(event.key, event.input_shapes, rank=rank, vocabulary=vocabulary)] += getattr(event, field)
    total = sum(times.values()) or 1
    return Profile(
        table=found.key_averages().table(sort_by=field, row_limit=ROWS, max_name_column_width=50),
        shares={kind: time / total for kind, time in times.most_common()},
    )


def kind_of(operator: str, shapes: Sequence[Any], *, rank: int, vocabulary: int) -> str:
    """What an operator belongs to."""
    sizes = set(_flat(shapes))
    if operator in _PRODUCTS:
        return _product_kind(sizes, rank=rank, vocabulary=vocabulary)
    if vocabulary in sizes:
        return "loss"
    return next((kind for word, kind in _KINDS.items() if word in operator), _OTHER)


def _product_kind(sizes: Collection[int], *, rank: int, vocabulary: int) -> str:
    if vocabulary in sizes:
        return "matrix products of the head"
    return "matrix products of LoRA" if rank in sizes else "matrix products with frozen weights"


def _flat(shapes: Iterable[Any]) -> Iterable[int]:
    return itertools.chain.from_iterable(
        _flat(each) if isinstance(each, list | tuple) else [each] for each in shapes if not isinstance(each, str)
    )
