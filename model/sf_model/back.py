"""Segments: the ordinary model class, entered before one of its blocks and, unless it runs to its end, left before another.

The blocks below a segment are replaced by placeholders without weights, and its first block reads the received rows
instead of what came before. So no family needs code of its own: whatever a model does on entry (positions, embedding
scale, embedding norm) happens before the rows are put in place. Where a segment is left, a placeholder reads the rows,
and nothing behind it has weights. Layer numbers stay those of the whole model, so an adapter trained here carries the
names it needs there.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from sf_contract.errors import ModelError, SplitLayerError
from sf_model.blocks import (
    ResultForm,
    StandIn,
    check_split_layer,
    find_blocks,
    refused_when_it_fails,
    replace_hidden_states,
    result_form,
)
from sf_model.taking_apart import drop_head, drop_what_follows, release_embedding

_PROBE_LENGTHS = (5, 3)
_MAX_PADDING_GAP: Final = {True: 1e-3, False: 0.1}
"""Relative, for fp32 and for shorter dtypes. Other batch shapes take other kernels, so results differ by rounding."""


class PadSide(enum.Enum):
    """On which side short sequences of a batch are padded."""

    LEFT = "left"
    RIGHT = "right"


class Segment(nn.Module):
    """Layers `first` to `until - 1`; with those up to the last one come final norm and head.

    Weights of other layers are freed, and those of the embedding unless the head needs them. Give `sharing_weights(model)`
    to have several segments of one model; whatever they have in common exists once.

    Attributes:
        model: the ordinary Transformers model; PEFT may wrap it in place.
        first: the layer it is entered at.
        until: the layer it is left before; `layers` when it runs to the model's end.
        layers: layers of the whole model.
        blocks_path: dotted name of the list of blocks in `model`.
        hidden: channels of the rows.
        pad_side: the side on which padding leaves every result unchanged, found by trying both unless it is given.

    Args:
        model: is taken apart.
        until: None to run to the model's end.
        rows_dtype: what the blocks compute in; None: the dtype of their weights.

    Raises:
        SplitLayerError: the segment lies outside the model, or is empty.
        ModelError: the model cannot be entered or left there, or padding changes its results on either side.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        first: int,
        *,
        until: int | None = None,
        pad_side: PadSide | None = None,
        rows_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        blocks = find_blocks(model)
        self.layers = len(blocks.modules)
        self.until = self.layers if until is None else until
        check_split_layer(first, self.layers, model.config.model_type)
        _check_end(first, self.until, self.layers)
        self.model: nn.Module = model
        self.first = first
        self.blocks_path = blocks.path
        self.hidden = int(model.config.get_text_config().hidden_size)
        self._body: tuple[nn.Module] = (model.base_model,)  # in a tuple, so that its weights have one name only
        self._rows: torch.Tensor | None = None
        self._left: torch.Tensor | None = None
        self._rows_dtype = rows_dtype
        self._takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        model.config.use_cache = False
        form = result_form(model, blocks)
        with refused_when_it_fails(model, f"cut to its layers {first} to {self.until - 1}"):
            self._cut_below(blocks.modules, form)
            end = self._cut_above(blocks.modules, form) if self.is_left_early else None
            if end is not None:
                drop_head(model)
            self._entry_width = release_embedding(model)
            if end is not None:
                self._drop_what_follows(end)
            self.pad_side = pad_side or self._find_pad_side()

    @property
    def body(self) -> nn.Module:
        """The bare base model within `model`: blocks and, at the model's end, final norm; no head."""
        return self._body[0]

    @property
    def is_left_early(self) -> bool:
        """True when other layers of the model come after this segment."""
        return self.until < self.layers

    def current_rows(self) -> torch.Tensor:
        """Rows of the batch that is being computed, `[batch, tokens, hidden]`."""
        if self._rows is None:
            raise RuntimeError("the model was called directly instead of through Segment.forward")
        return self._rows

    def forward(self, rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits of padded rows, or where the segment is left early, the rows that enter layer `until`.

        Args:
            rows: `[batch, tokens, hidden]`, padded on `pad_side`.
            attention_mask: int64 `[batch, tokens]`, 1 for real rows.

        Returns:
            `[batch, tokens, hidden]` for a segment that is left early, exactly as they enter block `until`; else
            `[batch, classes]` for classification, `[batch, tokens, vocabulary]` for causal language modelling,
            hidden states `[batch, tokens, hidden]` for a bare base model.
        """
        if not self.is_left_early:
            output = self._run(self.model, rows, attention_mask)
            logits: torch.Tensor = output.logits if "logits" in output else output[0]
            return logits
        try:
            self._run(self.body, rows, attention_mask)
            return cast(torch.Tensor, self._left)
        finally:
            self._left = None

    def pad(self, sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `[batch, longest, hidden]` and mask `[batch, longest]` of sequences `[tokens, hidden]`."""
        return _padded(sequences, self.pad_side)

    def _run(self, model: nn.Module, rows: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        options: dict[str, torch.Tensor] = {}
        if self._takes_positions:
            options["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
        self._rows = rows.to(self._rows_dtype or _block_dtype(self.model))
        # What enters is never read: not the rows themselves, as some models change it in place or give it other channels.
        entry = self._rows.new_zeros(*rows.shape[:2], self._entry_width)
        try:
            return model(inputs_embeds=entry, attention_mask=attention_mask, **options)
        finally:
            self._rows = None

    def _cut_below(self, blocks: nn.ModuleList, form: ResultForm) -> None:
        for index in range(self.first):
            blocks[index] = StandIn(blocks[index], form, self._instead_of)
        blocks[self.first].register_forward_pre_hook(self._enter, with_kwargs=True)

    def _cut_above(self, blocks: nn.ModuleList, form: ResultForm) -> nn.Module:
        """Drop the blocks from `until` on; what stands in their place and reads the rows."""
        end = StandIn(blocks[self.until], form, self._leave)
        del blocks[self.until :]
        blocks.append(end)
        return end

    @torch.no_grad()
    def _drop_what_follows(self, end: nn.Module) -> None:
        probe = _padded(self._probes()[:1], PadSide.RIGHT)
        drop_what_follows(self.body, end, lambda: self(*probe))

    def _instead_of(self, _: torch.Tensor) -> torch.Tensor:
        return self.current_rows()

    def _leave(self, rows: torch.Tensor) -> torch.Tensor:
        self._left = rows
        return rows

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return replace_hidden_states(args, kwargs, self.current_rows())

    @torch.no_grad()
    def _find_pad_side(self) -> PadSide:
        """Try both sides: the right one gives a batch of unlike lengths the results each sequence has alone."""
        was_training = self.model.training
        self.model.eval()
        probes = self._probes()
        gaps = {side: self._padding_gap(side, probes) for side in PadSide}
        self.model.train(was_training)
        best = min(PadSide, key=lambda side: gaps[side])
        if not gaps[best] < _MAX_PADDING_GAP[_block_dtype(self.model) is torch.float32]:
            raise ModelError(
                f"the back end gives other results when sequences are padded (relative gap {gaps[best]:.3g})",
                cure="choose a model whose batches may be padded",
            )
        return best

    def _probes(self) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        device = next(self.model.parameters()).device
        return [torch.randn(length, self.hidden, generator=generator).to(device) for length in _PROBE_LENGTHS]

    def _padding_gap(self, side: PadSide, probes: Sequence[torch.Tensor]) -> float:
        self.pad_side = side
        together = self(*self.pad(probes))
        worst = 0.0
        for index, probe in enumerate(probes):
            alone = self(*self.pad([probe]))[0]
            # Token-wise logits: compare the last real token; class logits have one vector per sequence.
            last = -1 if side is PadSide.LEFT else len(probe) - 1
            found = together[index] if together.ndim == 2 else together[index, last]
            wanted = alone if together.ndim == 2 else alone[-1]
            worst = max(worst, float((found - wanted).float().norm() / wanted.float().norm().clamp(min=1e-6)))
        return worst


class BackEnd(Segment):
    """Layers from the cut on, final norm and head.

    Attributes:
        split_layer: the cut.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        split_layer: int,
        *,
        pad_side: PadSide | None = None,
        rows_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, split_layer, pad_side=pad_side, rows_dtype=rows_dtype)
        self.split_layer = split_layer

    def continue_with(self, rows: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Logits `[1, new tokens, vocabulary]` of one sequence's next rows; what came before is in the cache, which grows.

        Args:
            rows: `[1, new tokens, hidden]`.
            cache: empty at the beginning of a sequence.
        """
        start = cache.get_seq_length()
        length = start + rows.shape[1]
        mask = torch.ones(1, length, dtype=torch.int64, device=rows.device)
        positions = torch.arange(start, length, device=rows.device)[None]
        options = {"position_ids": positions} if self._takes_positions else {}
        self._rows = rows.to(self._rows_dtype or _block_dtype(self.model))
        entry = self._rows.new_zeros(*rows.shape[:2], self._entry_width)
        try:
            output = self.model(
                inputs_embeds=entry, attention_mask=mask, past_key_values=cache, use_cache=True, **options
            )
        finally:
            self._rows = None
        # Models ask their first layers how long the sequence is, so those below the cut get keys of the least size.
        nothing = rows.new_zeros(1, 1, rows.shape[1], 1)
        for index in range(self.first):
            cache.update(nothing, nothing, index)
        logits: torch.Tensor = output.logits
        return logits


def _check_end(first: int, until: int, layers: int) -> None:
    if not first < until <= layers:
        raise SplitLayerError(
            f"a segment cannot begin at layer {first} and end before layer {until}: the model has {layers} layers",
            cure=f"let it end before one of the layers {first + 1} to {layers - 1}, or with the model",
        )


def _padded(sequences: Sequence[torch.Tensor], side: PadSide) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_side=side.value)
    ones = [torch.ones(len(sequence), dtype=torch.int64, device=rows.device) for sequence in sequences]
    mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side.value)
    return rows, mask


def _block_dtype(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
