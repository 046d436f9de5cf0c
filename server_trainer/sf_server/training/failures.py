"""What can go wrong in a step, by name: no memory, and numbers that are none."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from sf_contract.errors import TrainingFailed
from sf_server.settings import TrainSettings
from sf_server.training.learner import StepResult
from sf_server.training.memory import memory_cure

MAX_SKIPPED_IN_A_ROW: Final = 10
_WORDS_OF_THE_CPU_ALLOCATOR: Final = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


@dataclass(slots=True)
class Attempt:
    """What is being computed, for the message should memory run out."""

    what: str


@contextmanager
def memory_by_name(settings: TrainSettings, attempt: Attempt) -> Iterator[None]:
    """Tell which setting to lower when the memory does not suffice for what is done inside.

    Raises:
        TrainingFailed: it does not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise TrainingFailed(
            f"memory ran out {attempt.what}: {str(problem).splitlines()[0] if str(problem) else 'MemoryError'}",
            cure=f"{memory_cure(settings)}; --resume goes on from the last checkpoint with the new value",
        ) from problem


def is_out_of_memory(problem: BaseException) -> bool:
    """True for a failed allocation, on the processor or on a GPU."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(words in str(problem) for words in _WORDS_OF_THE_CPU_ALLOCATOR)


class FiniteGuard:
    """Ends training when too many steps in a row had to be left out."""

    def __init__(self) -> None:
        self._skipped_in_a_row = 0

    def look_at(self, result: StepResult, *, saved_step: int) -> None:
        """Count a step.

        Raises:
            TrainingFailed: that was one too many.
        """
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if result.was_skipped else 0
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingFailed(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row gave no finite gradient (last loss {result.loss})",
                cure=_rate_cure(saved_step),
            )


def check_finite(parameters: Mapping[str, torch.Tensor], *, saved_step: int) -> None:
    """Nothing but numbers is ever saved or published.

    Raises:
        TrainingFailed: a weight is infinite or not a number.
    """
    for name, parameter in parameters.items():
        # The sum of magnitudes is finite exactly when all are, but for an overflow, which is no better.
        if not math.isfinite(float(parameter.detach().abs().sum(dtype=torch.float64))):
            raise TrainingFailed(f"the weights {name} are not finite any more", cure=_rate_cure(saved_step))


def _rate_cure(saved_step: int) -> str:
    return "lower --learning-rate, or use --dtype fp32, with --resume; " + (
        f"the checkpoint of step {saved_step} is intact" if saved_step else "the samples in the store are intact"
    )
