"""`sf-edge bench`: how fast one bundle runs on this machine, with how much memory and energy, and what follows from that."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import msgspec

from sf_contract import SOFTWARE
from sf_contract.bundle import Bundle
from sf_contract.command import usable_cores
from sf_contract.errors import UsageError
from sf_contract.front_end import RUNTIME_VERSION, open_front_end, run_self_test
from sf_edge.bench.energy import Meter, NoMeter, find_meter
from sf_edge.bench.machine import describe_machine, machine_digest
from sf_edge.bench.report import BenchReport, Energy, Load, Shape, counted
from sf_edge.bench.start import measure_start
from sf_edge.bench.throttling import Look, judge, look_at
from sf_edge.bench.tuning import Tuning, advise
from sf_edge.bench.tuning_files import tuning_path, write_record
from sf_edge.bench.turns import Effort, Instruments, Measured, random_tokens, summarise, take_turns

USUAL_SHAPES: Final = (Shape(1, 16), Shape(1, 64), Shape(4, 64))
USUAL_THREADS: Final = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """Every shape with every number of threads."""

    shapes: tuple[Shape, ...]
    threads: tuple[int, ...]
    effort: Effort


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Clocks in seconds, the root of `/proc` and `/sys`, the order of turns, and where progress goes."""

    now_s: Callable[[], float]
    cpu_s: Callable[[], float]
    random: Random
    say: Callable[[str], None]
    root: Path = Path("/")


def plan_for(
    bundle: Bundle, *, shapes: Sequence[Shape] | None, threads: Sequence[int] | None, effort: Effort
) -> BenchPlan:
    """What to measure; None takes what is usual and possible with this bundle and this machine.

    Raises:
        UsageError: a shape has more tokens than the bundle allows.
    """
    most = bundle.manifest.geometry.max_tokens
    too_long = [shape for shape in shapes or () if shape.tokens > most]
    if too_long:
        raise UsageError(
            f"--shapes {too_long[0]} has more than the {most} tokens the bundle allows",
            cure="give fewer tokens, or export with a larger --max-tokens",
        )
    usual = dict.fromkeys(Shape(shape.rows, min(shape.tokens, most)) for shape in USUAL_SHAPES)
    possible = [count for count in USUAL_THREADS if count <= usable_cores()]
    return BenchPlan(
        shapes=tuple(sorted(set(shapes or usual))), threads=tuple(sorted(set(threads or possible))), effort=effort
    )


def bench(bundle: Bundle, plan: BenchPlan, around: Surroundings) -> BenchReport:
    """Measure.

    Raises:
        BundleError: the bundle cannot be computed, or there is not enough memory for it.
        SelfTestFailed: this machine computes something else, so its speed does not matter.
    """
    error = run_self_test(bundle, open_front_end(bundle))
    around.say("starting a process of its own, as sf-edge run does")
    start = measure_start(bundle, plan.shapes)
    meter = find_meter(around.root, now_s=around.now_s)
    around.say(_announcement(plan))
    looks = [look_at(around.root)]
    measured = _measure(bundle, plan, around, meter=meter, looks=looks)
    machine, cells, share = describe_machine(around.root), summarise(measured), processor_share(measured)
    return BenchReport(
        software=SOFTWARE,
        python=platform.python_version(),
        onnxruntime=RUNTIME_VERSION,
        machine=machine,
        machine_digest=machine_digest(machine, onnxruntime=RUNTIME_VERSION),
        bundle_id=bundle.bundle_id,
        bundle_bytes=sum(file.nbytes for file in bundle.manifest.files),
        model=bundle.manifest.base_model.name,
        split_layer=bundle.manifest.geometry.split_layer,
        self_test_error=error,
        rounds=plan.effort.rounds,
        timed_wall_s=sum(sum(turn.walls_s) for turn in measured.turns),
        timed_cpu_s=sum(turn.cpu_s for turn in measured.turns),
        processor_share=share,
        start=start,
        loads=_loads(measured),
        cells=cells,
        energy=energy_of(measured, meter),
        throttling=judge(looks),
        advice=advise(cells, processor_share=share),
    )


def store_advice(report: BenchReport, folder: Path) -> BenchReport:
    """Keep the advice, if it is reliable, where `sf-edge run` finds it; the report, saying where.

    Raises:
        UsageError: the file cannot be written.
    """
    if not report.advice.is_reliable:
        return report
    path = tuning_path(folder, report.bundle_id)
    record = Tuning(
        bundle_id=report.bundle_id,
        machine_digest=report.machine_digest,
        machine=report.machine.line,
        onnxruntime=report.onnxruntime,
        threads=report.advice.threads,
        tokens_per_s=report.advice.tokens_per_s,
        batch=report.advice.batch,
    )
    try:
        write_record(path, record)
    except OSError as problem:
        raise UsageError(
            f"{path} cannot be written: {problem.strerror}", cure="make that folder writable, or leave out --tune"
        ) from problem
    return msgspec.structs.replace(report, advice=msgspec.structs.replace(report.advice, stored_in=str(path)))


def processor_share(measured: Measured[int]) -> float:
    """Processor time over wall-clock time and threads, of the turns with the fewest threads; see `BenchReport`."""
    fewest = min(turn.key for turn in measured.turns)
    turns = [turn for turn in measured.turns if turn.key == fewest]
    wall_s = sum(sum(turn.walls_s) for turn in turns)
    return sum(turn.cpu_s for turn in turns) / (wall_s * fewest) if wall_s else 1.0


def energy_of(measured: Measured[int], meter: Meter | NoMeter) -> Energy:
    """Of all timed passes; None as soon as one turn could not be read."""
    if isinstance(meter, NoMeter):
        return Energy(why_not=meter.reason)
    joules = [turn.joules for turn in measured.turns if turn.joules is not None]
    if len(joules) < len(measured.turns):
        return Energy(source=meter.source, why_not=f"{meter.source} stopped telling during the run")
    wall_s = sum(sum(turn.walls_s) for turn in measured.turns)
    return Energy(joules=sum(joules), watts=sum(joules) / wall_s if wall_s else None, source=meter.source)


def _measure(
    bundle: Bundle, plan: BenchPlan, around: Surroundings, *, meter: Meter | NoMeter, looks: list[Look]
) -> Measured[int]:
    instruments = Instruments(
        now_s=around.now_s,
        cpu_s=around.cpu_s,
        meter=None if isinstance(meter, NoMeter) else meter,
        look=lambda: looks.append(look_at(around.root)),
    )
    return take_turns(
        {count: partial(open_front_end, bundle, threads=count) for count in plan.threads},
        random_tokens(plan.shapes, vocabulary=bundle.manifest.geometry.vocabulary),
        plan.effort,
        instruments=instruments,
        random=around.random,
    )


def _loads(measured: Measured[int]) -> tuple[Load, ...]:
    seconds = {
        key: [opening.load_s for opening in measured.openings if opening.key == key]
        for key in sorted({opening.key for opening in measured.openings})
    }
    return tuple(Load(threads, len(times_s), median(times_s)) for threads, times_s in seconds.items())


def _announcement(plan: BenchPlan) -> str:
    return (
        f"measuring {counted(len(plan.shapes), 'shape')} with threads {', '.join(map(str, plan.threads))} "
        f"in {counted(plan.effort.rounds, 'round')}, about {plan.effort.seconds:.0f} s and what opening and warming up take"
    )
