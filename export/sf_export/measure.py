"""What quantization costs: error of the rows at the cut, change of the whole model's loss, tokens per second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from sf_contract.codec import FloatRows, decode_rows, relative_row_errors
from sf_contract.front_end import FrontEnd
from sf_contract.manifest import MeasuredError
from sf_export.calibration import TokenIds
from sf_model.blocks import find_blocks, rows_entering, rows_leaving

SPEED_TOKENS: Final = 64
_SPEED_RUNS: Final = 15


@dataclass(frozen=True, slots=True)
class Prediction:
    """Next-token prediction over a text: mean loss in nats, and the share of tokens that were the most likely one."""

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class _Guesses:
    """Sum of the next-token losses of one sequence, tokens guessed rightly, and tokens to guess."""

    loss: float = 0.0
    hits: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What the untouched model computes.

    Attributes:
        sequences: the token sequences.
        rows: fp32 hidden states at the cut, `[tokens, hidden]` per sequence.
        prediction: how well the whole model predicts next tokens; None without a language-model head.
    """

    sequences: tuple[TokenIds, ...]
    rows: tuple[FloatRows, ...]
    prediction: Prediction | None

    def part(self, tokens: int) -> Reference:
        """Sequences spread over the whole text, with about as many tokens as asked for; without the prediction."""
        step = max(1, sum(map(len, self.sequences)) // tokens)
        return Reference(sequences=self.sequences[::step], rows=self.rows[::step], prediction=None)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of two graphs, medians of runs that took turns."""

    quantized: float
    fp32: float


def references_of(
    model: PreTrainedModel, split_layers: Sequence[int], sequences: Sequence[TokenIds]
) -> tuple[Reference, ...]:
    """Rows at each cut, and the prediction of the whole model, which runs once."""
    blocks = find_blocks(model)
    guesses: list[_Guesses] = []
    with torch.no_grad(), ExitStack() as stack:
        captured = [stack.enter_context(rows_leaving(blocks.modules[cut])) for cut in split_layers]
        for sequence in sequences:
            guesses.append(_guesses(model, sequence))
        rows = [tuple(found[0].float().numpy() for found in cut) for cut in captured]
    prediction = _prediction(guesses)
    return tuple(Reference(sequences=tuple(sequences), rows=cut, prediction=prediction) for cut in rows)


def rows_of(front_end: FrontEnd, sequences: Sequence[TokenIds]) -> list[FloatRows]:
    """Decoded wire rows of each sequence, computed alone."""
    return [decode_rows(front_end.run([sequence])[0]) for sequence in sequences]


def mean_error(front_end: FrontEnd, reference: Reference) -> float:
    """Mean relative error of the decoded wire rows."""
    return float(_errors(rows_of(front_end, reference.sequences), reference).mean())


def measure_error(
    rows: Sequence[FloatRows], model: PreTrainedModel, split_layer: int, *, reference: Reference, text: str
) -> MeasuredError:
    """Error of decoded rows over all tokens of the text, and the prediction when they enter the model at the cut."""
    errors = _errors(rows, reference)
    fp32 = reference.prediction
    found = None if fp32 is None else _prediction_from_rows(model, split_layer, reference.sequences, rows)
    return MeasuredError(
        tokens=len(errors),
        text=text,
        mean=_rounded(float(errors.mean())),
        p99=_rounded(float(np.quantile(errors, 0.99))),
        worst=_rounded(float(errors.max())),
        loss_fp32=None if fp32 is None else _rounded(fp32.loss),
        loss_quantized=None if found is None else _rounded(found.loss),
        accuracy_fp32=None if fp32 is None else _rounded(fp32.accuracy),
        accuracy_quantized=None if found is None else _rounded(found.accuracy),
    )


def input_peaks(module: nn.Module, sequences: Sequence[TokenIds]) -> Mapping[str, FloatRows]:
    """Largest absolute value of each input channel `[in]` of every linear submodule, over all tokens of the sequences."""
    peaks: dict[str, torch.Tensor] = {}
    with _inputs_noted(module, peaks), torch.no_grad():
        for sequence in sequences:
            token_ids = torch.tensor([sequence])
            module(token_ids, torch.ones_like(token_ids))
    return {name: peak.numpy() for name, peak in peaks.items()}


def measure_speed(quantized: FrontEnd, fp32: FrontEnd, sequence: TokenIds) -> Speed:
    """Tokens per second for one sequence of `SPEED_TOKENS` tokens."""
    repeated = (sequence * SPEED_TOKENS)[:SPEED_TOKENS]
    seconds: dict[FrontEnd, list[float]] = {quantized: [], fp32: []}
    for _ in range(_SPEED_RUNS):
        for front_end, runs in seconds.items():
            start = time.perf_counter()
            front_end.run([repeated])
            runs.append(time.perf_counter() - start)
    quantized_s, fp32_s = (statistics.median(seconds[front_end]) for front_end in (quantized, fp32))
    return Speed(quantized=SPEED_TOKENS / quantized_s, fp32=SPEED_TOKENS / fp32_s)


def _errors(rows: Sequence[FloatRows], reference: Reference) -> FloatRows:
    return relative_row_errors(np.concatenate(rows), np.concatenate(reference.rows))


def _prediction_from_rows(
    model: PreTrainedModel, split_layer: int, sequences: Sequence[TokenIds], rows: Sequence[FloatRows]
) -> Prediction | None:
    block = find_blocks(model).modules[split_layer]
    guesses: list[_Guesses] = []
    with torch.no_grad():
        for sequence, found in zip(sequences, rows, strict=True):
            with rows_entering(block, torch.from_numpy(found)[None]):
                guesses.append(_guesses(model, sequence))
    return _prediction(guesses)


def _guesses(model: PreTrainedModel, sequence: TokenIds) -> _Guesses:
    """What the model makes of one sequence; nothing to guess without a language-model head."""
    token_ids = torch.tensor([sequence])
    output = model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids))
    logits = getattr(output, "logits", None)
    if logits is None or len(sequence) < 2:
        return _Guesses()
    logits, wanted = logits[0, :-1].float(), token_ids[0, 1:]
    loss = functional.cross_entropy(logits, wanted, reduction="sum")
    return _Guesses(loss=float(loss), hits=int((logits.argmax(dim=1) == wanted).sum()), number=len(wanted))


def _prediction(guesses: Sequence[_Guesses]) -> Prediction | None:
    number = sum(part.number for part in guesses)
    if not number:
        return None
    return Prediction(
        loss=sum(part.loss for part in guesses) / number, accuracy=sum(part.hits for part in guesses) / number
    )


def _rounded(value: float) -> float:
    """Six significant digits: more would only say in which order a processor adds."""
    return float(f"{value:.6g}")


@contextmanager
def _inputs_noted(module: nn.Module, peaks: dict[str, torch.Tensor]) -> Iterator[None]:
    def note(name: str, args: tuple[object, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
            peak = args[0].detach().float().abs().flatten(0, -2).amax(dim=0)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    handles = [
        part.register_forward_pre_hook(lambda _, args, name=name: note(name, args))
        for name, part in module.named_modules()
        if _is_linear(part)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(part: nn.Module) -> bool:
    """By structure, for families bring linear layers of their own, such as GPT-2's Conv1D."""
    weight = getattr(part, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2
