"""The back end: the ordinary model class, entered at the cut.

The blocks below the cut are replaced by placeholders without weights, and the first block above it reads the received
rows instead of what came before. So no family needs code of its own: whatever a model does on entry (positions,
embedding scale, embedding norm) happens before the rows are put in place. Layer numbers stay those of the whole model,
so an adapter trained here carries the names it needs there.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from sf_contract.errors import ModelError
from sf_model.blocks import (
    StandIn,
    check_split_layer,
    find_blocks,
    refused_when_it_fails,
    replace_hidden_states,
    result_form,
)

_PROBE_LENGTHS = (5, 3)
_MAX_PADDING_GAP: Final = {True: 1e-3, False: 0.1}
"""Relative, for fp32 and for shorter dtypes. Other batch shapes take other kernels, so results differ by rounding."""


class PadSide(enum.Enum):
    """On which side short sequences of a batch are padded."""

    LEFT = "left"
    RIGHT = "right"


class BackEnd(nn.Module):
    """Layers from the cut on, final norm and head.

    Attributes:
        model: the ordinary Transformers model; PEFT may wrap it in place.
        split_layer: the cut.
        pad_side: the side on which padding leaves every result unchanged, found by trying both unless it is given.

    Args:
        rows_dtype: what the blocks compute in; None: the dtype of their weights.

    Raises:
        SplitLayerError: the cut lies outside the model.
        ModelError: the model cannot be entered at the cut, or padding changes its results on either side.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        split_layer: int,
        *,
        pad_side: PadSide | None = None,
        rows_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        blocks = find_blocks(model)
        check_split_layer(split_layer, len(blocks.modules), model.config.model_type)
        self.model: nn.Module = model
        self.split_layer = split_layer
        self.layers = len(blocks.modules)
        self.blocks_path = blocks.path
        self.hidden = int(model.config.get_text_config().hidden_size)
        self._rows: torch.Tensor | None = None
        self._rows_dtype = rows_dtype
        self._takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        model.config.use_cache = False
        form = result_form(model, blocks)
        self._entry_width = _release_embedding(model)
        for index in range(split_layer):
            blocks.modules[index] = StandIn(blocks.modules[index], form, self._instead_of)
        blocks.modules[split_layer].register_forward_pre_hook(self._enter, with_kwargs=True)
        with refused_when_it_fails(model, f"entered at cut {split_layer}"):
            self.pad_side = pad_side or self._find_pad_side()

    def current_rows(self) -> torch.Tensor:
        """Rows of the batch that is being computed, `[batch, tokens, hidden]`."""
        if self._rows is None:
            raise RuntimeError("the back end was called directly instead of through BackEnd.forward")
        return self._rows

    def forward(self, rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits of padded rows.

        Args:
            rows: `[batch, tokens, hidden]`, padded on `pad_side`.
            attention_mask: int64 `[batch, tokens]`, 1 for real rows.

        Returns:
            `[batch, classes]` for classification, `[batch, tokens, vocabulary]` for causal language modelling,
            hidden states `[batch, tokens, hidden]` for a bare base model.
        """
        options: dict[str, torch.Tensor] = {}
        if self._takes_positions:
            options["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)
        self._rows = rows.to(self._rows_dtype or _block_dtype(self.model))
        # What enters is never read: not the rows themselves, as some models change it in place or give it other channels.
        entry = self._rows.new_zeros(*rows.shape[:2], self._entry_width)
        try:
            output = self.model(inputs_embeds=entry, attention_mask=attention_mask, **options)
        finally:
            self._rows = None
        logits: torch.Tensor = output.logits if "logits" in output else output[0]
        return logits

    def pad(self, sequences: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `[batch, longest, hidden]` and mask `[batch, longest]` of sequences `[tokens, hidden]`."""
        rows = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_side=self.pad_side.value)
        lengths = [len(sequence) for sequence in sequences]
        ones = [torch.ones(length, dtype=torch.int64, device=rows.device) for length in lengths]
        mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=self.pad_side.value)
        return rows, mask

    def _instead_of(self, _: torch.Tensor) -> torch.Tensor:
        return self.current_rows()

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return replace_hidden_states(args, kwargs, self.current_rows())

    @torch.no_grad()
    def _find_pad_side(self) -> PadSide:
        """Try both sides: the right one gives a batch of unlike lengths the results each sequence has alone."""
        was_training = self.model.training
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        probes = [torch.randn(length, self.hidden, generator=generator) for length in _PROBE_LENGTHS]
        device = next(self.model.parameters()).device
        probes = [probe.to(device) for probe in probes]
        gaps = {side: self._padding_gap(side, probes) for side in PadSide}
        self.model.train(was_training)
        best = min(PadSide, key=lambda side: gaps[side])
        if not gaps[best] < _MAX_PADDING_GAP[_block_dtype(self.model) is torch.float32]:
            raise ModelError(
                f"the back end gives other results when sequences are padded (relative gap {gaps[best]:.3g})",
                cure="choose a model whose batches may be padded",
            )
        return best

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


def _block_dtype(model: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())


def _release_embedding(model: PreTrainedModel) -> int:
    """Free the token embedding unless the output head shares its weight: rows never pass through it.

    Returns:
        Its channels; some models widen or narrow them before the first block.
    """
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    channels = int(embedding.weight.shape[1])
    head = cast(nn.Linear | None, model.get_output_embeddings())  # type: ignore[no-untyped-call]
    if head is None or head.weight is not embedding.weight:
        embedding.weight = nn.Parameter(embedding.weight[:1].clone(), requires_grad=False)
    return channels
