"""`sf-bench front-end`: from the command line to a measurement, of one bundle alone or beside other runtimes."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from sf_contract.bundle import open_bundle
from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import UsageError
from sf_edge.bench.measurement import Surroundings, bench, plan_for
from sf_edge.bench.report import Shape, report_text
from sf_edge.bench.turns import Effort

_HELP = """Alone: what sf-edge bench does, for every number of tokens with every batch size; the same table and the same JSON.

With --against: every contestant runs the layers below the same cut of the same checkpoint in a process of its own,
loaded once, idle while another one measures. Each round gives everyone one turn; speeds are medians over the rounds,
ratios are to the fp32 ONNX graph in the same round, errors are those of the rows at the cut against PyTorch fp32.
Known rivals: onnx-fp32, torch, torch-bf16, openvino (fp32 and default), openvino-int8 (weights and full), llama.cpp
(q8_0, q4_0, q4_1), or all. OpenVINO, NNCF and llama.cpp are not among the project's packages: install them here, or in
environments of their own and name those with --python. Files made on the way are kept in --work, so a second run is short.
Times are wall-clock; on a machine that others use too, compare figures of one run only.

examples:
  sf-bench front-end out/bundle
  sf-bench front-end out/bundle --tokens 16,64,256 --batch 1,8 --threads 1,2 --json
  sf-bench front-end out/bundle --against onnx-fp32,torch,torch-bf16 --model model.gguf --work bench
  python -m venv ov && ov/bin/pip install openvino nncf
  sf-bench front-end out/a out/b --against all --model model.gguf --work bench --text wikitext.txt \\
      --python openvino=ov/bin/python --python llama.cpp=llama/bin/python --isa native,avx2 --markdown table.md"""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; its exit code."""
    given = _parser().parse_args(arguments)
    if "against" in given:
        return _compare(given)
    if len(given.bundles) > 1:
        raise UsageError("several bundles are measured with --against only", cure="add --against onnx-fp32")
    if not 0 < given.seconds <= 86_400 or given.rounds < 1:
        raise UsageError("--seconds and --rounds must be above 0", cure="leave them out for the defaults")
    return _alone(given)


def _alone(given: Namespace) -> int:
    bundle = open_bundle(given.bundles[0])
    shapes = [Shape(rows, tokens) for rows in given.batch for tokens in given.tokens or (16, 64)]
    effort = Effort(rounds=given.rounds, seconds=given.seconds)
    plan = plan_for(bundle, shapes=shapes, threads=given.threads, effort=effort)
    around = Surroundings(now_s=time.perf_counter, cpu_s=time.process_time, random=Random(0), say=say)
    report = bench(bundle, plan, around)
    if given.json:
        print_json(msgspec.to_builtins(report))
    else:
        print(report_text(report))
    return 0


def whole_numbers(text: str) -> tuple[int, ...]:
    """`16,64` as numbers, for argparse."""
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1:
        raise ValueError
    return numbers


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="sf-bench front-end", description="Measure front ends on this machine.", epilog=_HELP)
    add = parser.add_argument
    add("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundle folder; several with --against")
    add("--tokens", type=whole_numbers, default=None, metavar="N,N", help="default: 16,64; with --against: 64")
    add("--batch", type=whole_numbers, default=(1,), metavar="N,N", help="default: 1; with --against always 1")
    add("--threads", type=whole_numbers, default=(1,), metavar="N,N", help="default: 1")
    add("--seconds", type=float, default=20.0, metavar="S", help="all timed runs, without --against (default: 20)")
    add("--rounds", type=int, default=12, metavar="N", help="turns of each shape or contestant (default: 12)")
    add("--json", action="store_true", default=False, help="one JSON document on standard output")
    against = parser.add_argument_group("comparison with other runtimes")
    add = against.add_argument
    add("--against", metavar="NAME,NAME", help="rivals, or all")
    add("--model", metavar="ID|DIR|FILE", default=None, help="the checkpoint the bundles were made from")
    add("--revision", metavar="R", default=None, help="hub branch, tag or commit")
    add("--gguf", type=Path, metavar="FILE", default=None, help="the checkpoint for llama.cpp (default: --model)")
    add("--work", type=Path, metavar="DIR", default=Path("sf-bench-work"), help="kept files (default: sf-bench-work)")
    add("--text", type=Path, metavar="FILE", default=None, help="UTF-8 text to measure on (default: sf-export's prose)")
    add("--windows", type=int, default=16, metavar="N", help="sequences, spread over the text (default: 16)")
    add("--isa", metavar="NAME,NAME", default="native", help="native, avx2, avx512: limits for PyTorch and OpenVINO")
    add("--python", action="append", default=[], metavar="RUNTIME=PATH", help="interpreter of a runtime; repeatable")
    add(
        "--markdown",
        type=Path,
        metavar="FILE",
        default=None,
        help="write the table there too; between the marks `comparison: begin` and `end` if the file has them",
    )
    return parser


def _compare(given: Namespace) -> int:
    from sf_bench.compare_command import ComparisonPlan, parse_pythons, run_comparison  # noqa: PLC0415
    from sf_bench.rivals.contestants import ISAS  # noqa: PLC0415

    isas = tuple(part.strip() for part in given.isa.split(","))
    if unknown := [isa for isa in isas if isa not in ISAS]:
        raise UsageError(f"--isa does not know {unknown[0]!r}", cure=f"choose from {', '.join(ISAS)}")
    if min(given.windows, given.rounds) < 1:
        raise UsageError("--windows and --rounds must be 1 or more", cure="leave them out for the defaults")
    plan = ComparisonPlan(
        bundles=tuple(given.bundles),
        rivals=given.against,
        work=given.work.resolve(),
        model=given.model,
        revision=given.revision,
        gguf=given.gguf,
        text=given.text,
        tokens=_single("--tokens", given.tokens or (64,)),
        windows=given.windows,
        rounds=given.rounds,
        threads=_single("--threads", given.threads),
        isas=isas,
        pythons=parse_pythons(given.python),
    )
    _single("--batch", given.batch, only=1)
    return run_comparison(plan, markdown=given.markdown, as_json=given.json)


def _single(option: str, values: tuple[int, ...], *, only: int | None = None) -> int:
    if len(values) != 1 or (only is not None and values[0] != only):
        raise UsageError(
            f"{option} {','.join(map(str, values))} cannot be used with --against",
            cure=f"give {'one value' if only is None else only}",
        )
    return values[0]
