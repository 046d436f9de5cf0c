"""Padding that costs nothing: the blocks of a segment compute the real rows of a batch only, one behind the other.

Only attention needs to know which rows belong together; projections, norms and activations treat each row alone. So the
first block's rows `[batch, tokens, hidden]` are packed to `[1, real rows, hidden]`, attention spreads its heads out again
for as long as it takes, and the last block's rows are unpacked for whatever comes behind it.

It needs no knowledge of a family, but models whose attention is computed by Transformers' exchangeable `sdpa` function.
Whether a model is one is found by trying: packed and padded, it must give the same results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sf_model.back import Segment
from sf_model.blocks import entering_rows, replace_hidden_states

_IMPLEMENTATION: Final = "splitfrozen_packed"
_ATTRIBUTE: Final = "splitfrozen_packing"
_PROBE_LENGTHS: Final = (7, 3, 5)
_MAX_GAP: Final = {True: 1e-4, False: 0.05}
"""Relative, for fp32 and for shorter dtypes: other shapes take other kernels, so results differ by rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the real rows of a batch are.

    Attributes:
        batch, length: shape of the padded batch.
        slots: int64 `[rows]`, the place of each real row in the padded batch, counted through.
    """

    batch: int
    length: int
    slots: torch.Tensor
    _packed: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Real rows."""
        return len(self.slots)

    def is_padded(self, tensor: torch.Tensor) -> bool:
        """True for `[batch or 1, length, ...]`; never for packed rows, as two sequences have more rows than the longer one."""
        return tensor.ndim >= 2 and tensor.shape[0] in (1, self.batch) and tensor.shape[1] == self.length

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """`[1, rows, ...]` of `[batch or 1, length, ...]`."""
        whole = padded.expand(self.batch, *padded.shape[1:])
        return whole.flatten(0, 1).index_select(0, self.slots)[None]

    def pack_once(self, padded: torch.Tensor) -> torch.Tensor:
        """The same, remembered: what is given to every block is packed for the first."""
        key = id(padded)
        if key not in self._packed:
            self._packed[key] = (padded, self.pack(padded))  # kept, so that no other tensor gets its id
        return self._packed[key][1]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """`[batch, length, ...]` of `[1, rows, ...]`, zeros in between."""
        padded = packed.new_zeros(self.batch * self.length, *packed.shape[2:])
        return padded.index_copy(0, self.slots, packed[0]).view(self.batch, self.length, *packed.shape[2:])

    def unpack_heads(self, packed: torch.Tensor) -> torch.Tensor:
        """`[batch, heads, length, channels]` of `[1, heads, rows, channels]`."""
        return self.unpack(packed.transpose(1, 2)).transpose(1, 2)


def layout_of(mask: torch.Tensor) -> Layout | None:
    """The layout of a mask `[batch, length]`; None when nothing is padded."""
    slots = mask.flatten().nonzero().squeeze(1)
    return None if len(slots) == mask.numel() else Layout(batch=mask.shape[0], length=mask.shape[1], slots=slots)


class Packing:
    """Packs the batches that a segment computes, from `attach` to `detach`."""

    def __init__(self, segment: Segment) -> None:
        self.layout: Layout | None = None
        self._segment = segment
        self._model = plain_model(segment)
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Begin to pack."""
        AttentionInterface.register(_IMPLEMENTATION, _attention)
        AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)
        blocks = blocks_of(self._segment)
        for block in blocks:
            for module in block.modules():
                setattr(module, _ATTRIBUTE, self)
            self._handles.append(block.register_forward_pre_hook(self._enter, with_kwargs=True))
        self._handles.append(blocks[-1].register_forward_hook(self._leave))
        self._handles.append(self._segment.register_forward_pre_hook(self._begin))
        self._model.set_attn_implementation(_IMPLEMENTATION)

    def detach(self) -> None:
        """Leave the segment as it was."""
        self.layout = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for block in blocks_of(self._segment):
            for module in block.modules():
                delattr(module, _ATTRIBUTE)
        self._model.set_attn_implementation("sdpa")

    def _begin(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        # Kept until the next batch: checkpointed blocks run again during the backward pass.
        self.layout = layout_of(args[1])

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        layout = self.layout
        if layout is None:
            return args, kwargs
        rows = entering_rows(args, kwargs)
        rows = layout.pack(rows) if layout.is_padded(rows) else rows
        args, kwargs = replace_hidden_states(args, kwargs, rows)
        return args, {name: _packed(name, value, layout) for name, value in kwargs.items()}

    def _leave(self, _: nn.Module, __: tuple[Any, ...], result: Any) -> Any:
        layout = self.layout
        if layout is None:
            return result
        if isinstance(result, torch.Tensor):
            return layout.unpack(result)
        return (layout.unpack(result[0]), *result[1:])


def pack_if_possible(segment: Segment) -> Packing | None:
    """Pack a segment's batches from now on, unless its model cannot: then nothing changes, and None is returned."""
    model = plain_model(segment)
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return None
    rows, mask = segment.pad(probe_rows(segment, _PROBE_LENGTHS))
    was_training = segment.model.training
    segment.model.eval()
    try:
        packing = Packing(segment)
        fits = _fits(segment, packing, rows, mask)
    finally:
        segment.model.train(was_training)
    return packing if fits else None


def plain_model(segment: Segment) -> PreTrainedModel:
    """The Transformers model of a segment, also when PEFT wraps it."""
    model: Any = segment.model
    return model if isinstance(model, PreTrainedModel) else cast(PreTrainedModel, model.get_base_model())


def blocks_of(segment: Segment) -> list[nn.Module]:
    """The blocks that a segment computes."""
    blocks = cast(nn.ModuleList, plain_model(segment).get_submodule(segment.blocks_path))
    return list(blocks[segment.first : segment.until])


def probe_rows(segment: Segment, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    """Random rows of a few short sequences, on the segment's device."""
    generator = torch.Generator().manual_seed(1)
    device = next(segment.model.parameters()).device
    return [torch.randn(length, segment.hidden, generator=generator).to(device) for length in lengths]


def real_results(results: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Results of the real rows where there is one per row `[batch, tokens, channels]`, else all of them."""
    return results[mask > 0] if results.shape[:2] == mask.shape and results.ndim == 3 else results


def relative_gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Euclidean distance over the length of what was wanted."""
    return float((found - wanted).float().norm() / wanted.float().norm().clamp(min=1e-6))


@torch.no_grad()
def _fits(segment: Segment, packing: Packing, rows: torch.Tensor, mask: torch.Tensor) -> bool:
    wanted = real_results(segment(rows, mask), mask)
    packing.attach()
    try:
        found = real_results(segment(rows, mask), mask)
        gap = relative_gap(found, wanted) if found.shape == wanted.shape else float("inf")
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # a model that wants its padding
        gap = float("inf")
    fits = gap < _MAX_GAP[wanted.dtype is torch.float32]
    if not fits:
        packing.detach()
    return fits


def _packed(name: str, value: Any, layout: Layout) -> Any:
    """A block's argument, packed if it holds something for each row, such as positions; masks belong to attention."""
    if isinstance(value, tuple):
        return tuple(_packed(name, part, layout) for part in value)
    if isinstance(value, Mapping):
        return {key: _packed(name, part, layout) for key, part in value.items()}
    if not isinstance(value, torch.Tensor) or "mask" in name or not layout.is_padded(value):
        return value
    return layout.pack_once(value) if value.ndim == 3 or name == "position_ids" else value


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    packing: Packing | None = getattr(module, _ATTRIBUTE, None)
    layout = packing.layout if packing else None
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key, value = map(layout.unpack_heads, (query, key, value))
    mixed, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return layout.pack(mixed), None
