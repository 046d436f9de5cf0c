"""`sf-edge bench`: from the command line to a report."""

from __future__ import annotations

import re
import time
from pathlib import Path
from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sf_contract.command import print_json, say
from sf_contract.errors import UsageError
from sf_contract.settings import resolve_settings
from sf_contract.signing import read_trust_list
from sf_edge.bench.measurement import Surroundings, bench, plan_for, store_advice
from sf_edge.bench.report import Shape, report_text
from sf_edge.bench.tuning_files import default_tuning_folder
from sf_edge.bench.turns import Effort
from sf_edge.bundles.candidates import Acceptance
from sf_edge.bundles.choice import choose_bundle, this_place


class BenchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of `sf-edge bench`; `shapes` and `threads` None take what is usual, `seconds` are of all timed passes."""

    bundle: Annotated[str, Meta(min_length=1)]
    shapes: str | None = None
    threads: str | None = None
    rounds: Annotated[int, Meta(ge=1, le=1_000)] = 5
    seconds: Annotated[float, Meta(gt=0, le=86_400)] = 20.0
    tune: bool = False
    trust: str | None = None
    json: bool = False


def run_bench(settings: BenchSettings) -> int:
    """Measure and report; the exit code.

    Raises:
        SplitFrozenError: every failure a person can act on.
    """
    shapes = None if settings.shapes is None else parse_shapes(settings.shapes)
    threads = None if settings.threads is None else parse_threads(settings.threads)
    trust = None if settings.trust is None else read_trust_list(Path(settings.trust).expanduser())
    place = this_place(default_tuning_folder())
    chosen = choose_bundle(Path(settings.bundle).expanduser(), Acceptance(trust), place=place, say=say)
    effort = Effort(rounds=settings.rounds, seconds=settings.seconds)
    plan = plan_for(chosen.bundle, shapes=shapes, threads=threads, effort=effort)
    around = Surroundings(now_s=time.perf_counter, cpu_s=time.process_time, random=Random(), say=say)
    report = bench(chosen.bundle, plan, around)
    if settings.tune:
        report = store_advice(report, place.tuning_folder)
        if report.advice.stored_in is None:
            say("nothing is stored, as the machine was busy; measure again when it is quiet")
    if settings.json:
        print_json(msgspec.to_builtins(report))
    else:
        print(report_text(report))
    return 0


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """`1x16,4x64` as shapes.

    Raises:
        UsageError: it is something else.
    """
    matches = [re.fullmatch(r"([0-9]{1,3})x([0-9]{1,5})", part.strip()) for part in text.split(",")]
    shapes = [Shape(int(match[1]), int(match[2])) for match in matches if match is not None]
    if len(shapes) != len(matches) or any(not 1 <= shape.rows <= 256 or shape.tokens < 1 for shape in shapes):
        raise UsageError(
            f"--shapes {text!r} is no list of shapes", cure="write ROWSxTOKENS, 1 to 256 rows, as in 1x16,1x64,4x64"
        )
    return tuple(shapes)


def parse_threads(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers of threads.

    Raises:
        UsageError: it is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,3}", part) and 1 <= int(part) <= 256 for part in parts):
        raise UsageError(f"--threads {text!r} is no list of numbers from 1 to 256", cure="write 1,2,4")
    return tuple(int(part) for part in parts)


def bench_settings(flags: dict[str, Any]) -> BenchSettings:
    """Settings from what the command line gave.

    Raises:
        UsageError: a value is out of range.
    """
    return resolve_settings(BenchSettings, toml_path=None, flags=flags)
