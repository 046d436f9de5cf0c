"""LoRA's projections, computed with fewer passes over memory than module by module.

PEFT computes `y = W x + s * B(A x)` as five operations, each of which writes rows as wide as the projection. Here the
scale goes to the `rank` channels in the middle, and both products add into rows that are there already, forward and
backward:

    t = s * (x A^T)        y  = x W^T + t B^T
    u = s * (dy B)         dx = dy W + u A        dA = u^T x        dB = dy^T t
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sf_model.back import Segment

_ADAPTER: Final = "default"


class LoraProjection(Protocol):
    """What PEFT puts in a projection's place, as far as it is used here."""

    base_layer: nn.Linear | Conv1D
    lora_A: Mapping[str, nn.Linear]  # noqa: N815  # PEFT's names
    lora_B: Mapping[str, nn.Linear]  # noqa: N815
    lora_dropout: Mapping[str, nn.Module]
    lora_variant: Mapping[str, object]
    scaling: Mapping[str, float]
    disable_adapters: bool
    merged: bool
    forward: Callable[..., torch.Tensor]


class _Fused(torch.autograd.Function):
    """`x` is `[rows, in]`, `weight` `[out, in]` (may be a view), `a` `[rank, in]`, `b` `[out, rank]`."""

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd takes no keywords
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        t = (x @ low_a.T).mul_(scaling)
        ctx.save_for_backward(x, weight, t, low_a, low_b)
        ctx.scaling, ctx.dtype = scaling, a.dtype
        return y.addmm_(t, low_b.T)

    @staticmethod
    def backward(
        ctx: Any, dy: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, None, torch.Tensor, torch.Tensor, None]:
        x, weight, t, a, b = ctx.saved_tensors
        u = (dy @ b).mul_(ctx.scaling)
        dx = (dy @ weight).addmm_(u, a) if ctx.needs_input_grad[0] else None
        return dx, None, None, (u.T @ x).to(ctx.dtype), (dy.T @ t).to(ctx.dtype), None


def fuse_lora(segment: Segment) -> int:
    """Compute a segment's plain LoRA projections this way; how many there are.

    Those with dropout, with a variant such as DoRA, or that are no linear projections, go on as PEFT computes them.
    """
    fused = 0
    for module in segment.model.modules():
        if _is_plain(module):
            layer = cast(LoraProjection, module)
            layer.forward = partial(_forward, layer, layer.forward)
            fused += 1
    return fused


def _is_plain(module: nn.Module) -> bool:
    if not (hasattr(module, "lora_A") and isinstance(getattr(module, "base_layer", None), nn.Linear | Conv1D)):
        return False
    layer = cast(LoraProjection, module)
    return (
        list(layer.lora_A) == [_ADAPTER]
        and not len(layer.lora_variant)
        and isinstance(layer.lora_dropout[_ADAPTER], nn.Identity)
        and layer.lora_B[_ADAPTER].bias is None
        and not layer.base_layer.weight.requires_grad
        and layer.base_layer.weight.is_floating_point()
    )


def _forward(
    layer: LoraProjection, ordinary: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or args or kwargs:
        return ordinary(x, *args, **kwargs)
    base = layer.base_layer
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    flat = x.reshape(-1, x.shape[-1])
    y: torch.Tensor = _Fused.apply(flat, weight, base.bias, a, b, layer.scaling[_ADAPTER])  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])
