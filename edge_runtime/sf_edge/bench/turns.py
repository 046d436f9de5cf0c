"""Measuring several things fairly on a machine that drifts: in rounds, everyone one turn per round, in a shuffled order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Generic, Protocol, TypeVar

import numpy as np

from sf_edge.bench.energy import Meter
from sf_edge.bench.report import CellResult, Shape

WARM_UP_RUNS: Final = 2
FEWEST_RUNS: Final = 3
MOST_RUNS: Final = 1_000
"""Timed passes of one turn."""

K = TypeVar("K", bound=Hashable)
TokenIds = Sequence[Sequence[int]]


class Computes(Protocol):
    """An opened front end."""

    def run(self, sequences: Sequence[Sequence[int]]) -> object:
        """One forward pass."""
        ...


@dataclass(frozen=True, slots=True)
class Instruments:
    """What is read around the passes: clocks in seconds, a meter of energy, and a look at the machine after each turn."""

    now_s: Callable[[], float]
    cpu_s: Callable[[], float]
    meter: Meter | None = None
    look: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Effort:
    """How often and how long: `seconds` are of all turns together, beside warm-up and opening."""

    rounds: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Turn(Generic[K]):
    """Timed passes of one contestant with one shape; `joules` None where no meter said."""

    key: K
    shape: Shape
    walls_s: tuple[float, ...]
    cpu_s: float
    joules: float | None


@dataclass(frozen=True, slots=True)
class Opening(Generic[K]):
    """Seconds until a contestant was ready."""

    key: K
    load_s: float


@dataclass(frozen=True, slots=True)
class Measured(Generic[K]):
    """Every turn and every opening, in order of time."""

    turns: tuple[Turn[K], ...]
    openings: tuple[Opening[K], ...]


def take_turns(
    contestants: Mapping[K, Callable[[], Computes]],
    inputs: Mapping[Shape, TokenIds],
    effort: Effort,
    *,
    instruments: Instruments,
    random: Random,
) -> Measured[K]:
    """Measure every contestant with every shape.

    A contestant is opened for its turn and closed after it, so no more than one graph is ever in memory.
    """
    turns: list[Turn[K]] = []
    openings: list[Opening[K]] = []
    slice_s = effort.seconds / (effort.rounds * len(contestants) * len(inputs))
    for _ in range(effort.rounds):
        for key in shuffled(list(contestants), random):
            began_s = instruments.now_s()
            front_end = contestants[key]()
            openings.append(Opening(key, instruments.now_s() - began_s))
            for shape in shuffled(list(inputs), random):
                turns.append(_turn(key, shape, front_end, inputs[shape], slice_s=slice_s, instruments=instruments))
            del front_end
    return Measured(tuple(turns), tuple(openings))


def shuffled(items: Sequence[K], random: Random) -> list[K]:
    """The same items in another order."""
    return random.sample(items, len(items))


def summarise(measured: Measured[int]) -> tuple[CellResult, ...]:
    """One result per shape and number of threads, which is the key here, in that order."""
    cells = sorted({(turn.shape, turn.key) for turn in measured.turns})
    return tuple(_cell(measured, threads=threads, shape=shape) for shape, threads in cells)


def median_tokens_per_s(measured: Measured[K], key: K) -> float:
    """Of a contestant, over all its turns; for measurements with one shape."""
    turns = [turn for turn in measured.turns if turn.key == key]
    return turns[0].shape.rows * turns[0].shape.tokens / float(np.median([s for turn in turns for s in turn.walls_s]))


def random_tokens(shapes: Sequence[Shape], *, vocabulary: int) -> dict[Shape, TokenIds]:
    """Token ids for each shape, the same every time: speed does not depend on which they are."""
    generator = np.random.default_rng(0)
    return {shape: generator.integers(0, vocabulary, (shape.rows, shape.tokens)).tolist() for shape in shapes}


def _turn(
    key: K, shape: Shape, front_end: Computes, token_ids: TokenIds, *, slice_s: float, instruments: Instruments
) -> Turn[K]:
    for _ in range(WARM_UP_RUNS):
        front_end.run(token_ids)
    before = None if instruments.meter is None else instruments.meter.mark()
    cpu_began_s = instruments.cpu_s()
    walls_s = tuple(_timed_passes(front_end, token_ids, slice_s=slice_s, now_s=instruments.now_s))
    cpu_s = instruments.cpu_s() - cpu_began_s
    meter = instruments.meter
    joules = None if meter is None or before is None else meter.joules(before, meter.mark())
    instruments.look()
    return Turn(key, shape, walls_s, cpu_s, joules)


def _timed_passes(
    front_end: Computes, token_ids: TokenIds, *, slice_s: float, now_s: Callable[[], float]
) -> Iterator[float]:
    """At least `FEWEST_RUNS`, then until the slice of time is used."""
    began_s = now_s()
    for run in range(MOST_RUNS):
        run_began_s = now_s()
        if run >= FEWEST_RUNS and run_began_s - began_s >= slice_s:
            return
        front_end.run(token_ids)
        yield now_s() - run_began_s


def _cell(measured: Measured[int], *, threads: int, shape: Shape) -> CellResult:
    turns = [turn for turn in measured.turns if turn.key == threads and turn.shape == shape]
    walls_s = [wall_s for turn in turns for wall_s in turn.walls_s]
    p50_s, p95_s, p99_s = (float(value) for value in np.percentile(walls_s, [50, 95, 99]))
    tokens = shape.rows * shape.tokens
    joules = [turn.joules for turn in turns if turn.joules is not None]
    return CellResult(
        shape=shape,
        threads=threads,
        runs=len(walls_s),
        p50_ms=p50_s * 1e3,
        p95_ms=p95_s * 1e3,
        p99_ms=p99_s * 1e3,
        tokens_per_s=tokens / p50_s,
        cpu_ms=sum(turn.cpu_s for turn in turns) / len(walls_s) * 1e3,
        joules_per_1000_tokens=sum(joules) / (tokens * len(walls_s)) * 1e3 if len(joules) == len(turns) else None,
    )
