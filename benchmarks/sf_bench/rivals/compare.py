"""The comparison: workers open one after the other, are checked against PyTorch fp32, and then take turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from sf_bench.rivals.contest import REFERENCE_RIVAL, Contest, Contestant, rival_contestants
from sf_bench.rivals.contestants import BASELINE, NATIVE
from sf_bench.rivals.protocol import FloatRows
from sf_bench.rivals.turns import Spread, plan_turns, ratios_to, spread_of, tokens_per_s
from sf_bench.rivals.worker_process import Turn, Worker, WorkerFailed
from sf_contract.codec import relative_row_errors
from sf_contract.errors import ModelError
from sf_edge.bench.machine import Machine

Say = Callable[[str], None]


class RowError(msgspec.Struct, frozen=True):
    """Relative error of rows against PyTorch fp32, over all tokens."""

    mean: float
    p99: float
    worst: float


class Result(msgspec.Struct, frozen=True):
    """One row of the table.

    Attributes:
        name, says, version, isa: what ran, in what, under which instruction limit.
        tokens_per_s, ratio: on the clock, over the rounds; the ratio is to the fp32 graph in the same round.
        cpu_tokens_per_s, cpu_ratio: the same in processor time, which leaves out what others do on the machine.
        size_mb: on disk; None where the front end is no file of its own.
        memory_mb: of the whole worker process, interpreter and library included, after the last turn.
        error: of the rows at the cut; None where they cannot be had.
        normalised_error: of the RMS-normalised rows.
        failed: why it could not be measured; everything else is empty then.
    """

    name: str
    says: str
    isa: str
    version: str = ""
    tokens_per_s: Spread | None = None
    ratio: Spread | None = None
    cpu_tokens_per_s: Spread | None = None
    cpu_ratio: Spread | None = None
    size_mb: float | None = None
    memory_mb: float | None = None
    error: RowError | None = None
    normalised_error: RowError | None = None
    failed: str | None = None


class Comparison(msgspec.Struct, frozen=True):
    """All results of one run, and what they were measured on."""

    machine: Machine
    model: str
    split_layer: int
    tokens: int
    windows: int
    rounds: int
    threads: int
    text: str
    notes: tuple[str, ...]
    results: tuple[Result, ...]


def measure_contestants(
    contest: Contest, contestants: Sequence[Contestant], *, rounds: int, say: Say
) -> tuple[Result, ...]:
    """Open everybody, compare rows, take turns.

    Raises:
        ModelError: the reference or the baseline cannot be run, so there is nothing to compare with.
    """
    reference = _reference_rows(contest, say)
    opened: dict[str, Result] = {}
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for contestant in contestants:
            say(f"sf-bench: opening {contestant.name}")
            try:
                worker = stack.enter_context(contest.start(contestant))
                opened[contestant.name] = _checked(contestant, worker, reference)
            except WorkerFailed as problem:
                opened[contestant.name] = failed_result(contestant.name, contestant.says, contestant.isa, str(problem))
                continue
            workers[contestant.name] = worker
        if BASELINE not in workers:
            raise ModelError(f"the fp32 graph cannot be run: {opened[BASELINE].failed}", cure="see the log it names")
        seconds = _take_turns(workers, rounds, say)
        tokens = len(contest.windows[0])
        return tuple(_finished(opened[each.name], seconds, workers, tokens=tokens) for each in contestants)


def failed_result(name: str, says: str, isa: str, reason: str) -> Result:
    """The row of somebody who could not be measured."""
    return Result(name=name, says=says, isa=isa, failed=" ".join(reason.split()))


def row_error(measured: FloatRows, reference: FloatRows) -> RowError:
    """Mean, 99th percentile and worst relative error of rows `[tokens, hidden]`."""
    errors = relative_row_errors(measured, reference)
    return RowError(float(errors.mean()), float(np.quantile(errors, 0.99)), float(errors.max()))


def rms_normalised(rows: FloatRows) -> FloatRows:
    """Rows divided by their root mean square: what a final RMS norm of weight one leaves of them."""
    scale = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=1, keepdims=True))
    return np.asarray(rows / np.maximum(scale, 1e-12), dtype=np.float32)


def _reference_rows(contest: Contest, say: Say) -> FloatRows:
    say("sf-bench: computing the rows with PyTorch fp32")
    reference = msgspec.structs.replace(rival_contestants(contest, REFERENCE_RIVAL, say=say)[0], isa=NATIVE)
    try:
        with contest.start(reference) as worker:
            return _rows_of(reference, worker)
    except WorkerFailed as problem:
        raise ModelError(f"PyTorch cannot run the front end: {problem}", cure="see the log it names") from problem


def _rows_of(contestant: Contestant, worker: Worker) -> FloatRows:
    path = Path(contestant.job.options["rows_file"])
    tokens, hidden = worker.rows_shape()
    rows = np.fromfile(path, dtype="<f4", count=tokens * hidden).reshape(tokens, hidden)
    path.unlink()
    return np.asarray(rows, dtype=np.float32)


def _checked(contestant: Contestant, worker: Worker, reference: FloatRows) -> Result:
    rows = _rows_of(contestant, worker)
    if rows.shape != reference.shape or not np.isfinite(rows).all():
        raise WorkerFailed(f"its rows {rows.shape} are not finite rows of shape {reference.shape}")
    return Result(
        name=contestant.name,
        says=contestant.says,
        isa=contestant.isa,
        version=worker.version,
        size_mb=None if contestant.nbytes is None else contestant.nbytes / 1e6,
        error=None if contestant.normalised else row_error(rows, reference),
        normalised_error=row_error(rms_normalised(rows), rms_normalised(reference)),
    )


def _take_turns(workers: Mapping[str, Worker], rounds: int, say: Say) -> dict[str, list[Turn] | str]:
    """The turns of each contestant, or why it dropped out."""
    turns: dict[str, list[Turn]] = {name: [] for name in workers}
    dropped: dict[str, str] = {}
    for number, order in enumerate(plan_turns(list(workers), rounds), start=1):
        say(f"sf-bench: round {number} of {rounds}")
        for name in order:
            if name in dropped:
                continue
            try:
                turns[name].append(workers[name].turn())
            except WorkerFailed as problem:
                dropped[name] = str(problem)
    return {**turns, **dropped}


def _finished(
    result: Result, turns: Mapping[str, list[Turn] | str], workers: Mapping[str, Worker], *, tokens: int
) -> Result:
    if result.failed is not None:
        return result
    own, baseline = turns[result.name], turns[BASELINE]
    if isinstance(baseline, str):
        raise ModelError(f"the fp32 graph cannot be run: {baseline}", cure="see the log it names")
    if isinstance(own, str):
        return failed_result(result.name, result.says, result.isa, own)
    wall, of_baseline = ([tokens_per_s(turn.wall_s, tokens=tokens) for turn in each] for each in (own, baseline))
    cpu, cpu_of_baseline = ([tokens_per_s(turn.cpu_s, tokens=tokens) for turn in each] for each in (own, baseline))
    return msgspec.structs.replace(
        result,
        tokens_per_s=spread_of(wall),
        ratio=spread_of(ratios_to(of_baseline, wall)),
        cpu_tokens_per_s=spread_of(cpu),
        cpu_ratio=spread_of(ratios_to(cpu_of_baseline, cpu)),
        memory_mb=workers[result.name].memory_mb(),
    )
