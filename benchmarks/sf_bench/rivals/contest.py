"""From what was asked for to the workers' jobs: files are made, interpreters are checked, nothing is measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.rivals.contestants import ISAS, NATIVE, PIP_NAMES, REFERENCE, RIVALS, Rival, isas_of
from sf_bench.rivals.prepare import Front, GgufFiles, Windows, gguf_files
from sf_bench.rivals.protocol import Job
from sf_bench.rivals.worker_process import (
    Interpreter,
    Worker,
    check_packages,
    foreign_interpreter,
    worker_environment,
)
from sf_contract.bundle import Bundle, sha256_of_file
from sf_contract.errors import UsageError

Say = Callable[[str], None]
REFERENCE_RIVAL: Final = next(rival for rival in RIVALS if rival.name == REFERENCE)


class Contestant(msgspec.Struct, frozen=True):
    """One row of the table.

    Attributes:
        name: what it is called, with its instruction limit if it has one.
        says: what it is.
        job: what its worker does.
        interpreter, isa: how the worker is started.
        nbytes: size on disk; None where the front end is not a file of its own.
        normalised: its rows come RMS-normalised.
    """

    name: str
    says: str
    job: Job
    interpreter: Interpreter
    isa: str
    nbytes: int | None
    normalised: bool = False


class Contest(msgspec.Struct, frozen=True):
    """What everybody gets.

    Attributes:
        front: checkpoint and cut.
        fp32: the unquantized bundle.
        gguf: the checkpoint for llama.cpp; None when it has none.
        windows: sequences to measure on.
        calibration: sequences to quantize on.
        threads: threads of every worker.
        isas: instruction limits asked for.
        flags: the processor's flags.
        interpreters: by runtime.
    """

    front: Front
    fp32: Bundle
    gguf: Path | None
    windows: Windows
    calibration: Windows
    threads: int
    isas: tuple[str, ...]
    flags: tuple[str, ...]
    interpreters: Mapping[str, Interpreter]

    def start(self, contestant: Contestant) -> Worker:
        """Open a contestant's worker.

        Raises:
            WorkerFailed: it cannot run the front end.
        """
        logs = self.front.work / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = worker_environment(
            contestant.interpreter, threads=self.threads, limits=ISAS[contestant.isa], base=os.environ
        )
        return Worker(
            contestant.job,
            python=contestant.interpreter.python,
            environment=environment,
            log=logs / f"{contestant.name.replace('/', '-')}.log",
        )


def find_interpreters(
    rivals: Sequence[Rival], given: Mapping[str, str], *, python: str, work: Path
) -> dict[str, Interpreter]:
    """The interpreter of each runtime, after checking that it has what its rivals need.

    Raises:
        UsageError: one does not run, or lacks a package.
    """
    found: dict[str, Interpreter] = {}
    for rival in (*rivals, REFERENCE_RIVAL):
        if rival.runtime not in found:
            other = given.get(rival.runtime)
            found[rival.runtime] = foreign_interpreter(other, work) if other else Interpreter(python=python)
        check_packages(found[rival.runtime], runtime=rival.runtime, packages=rival.packages, pip_names=PIP_NAMES)
    return found


def bundle_contestant(contest: Contest, bundle: Bundle, name: str, says: str) -> Contestant:
    """A bundle in ONNX Runtime."""
    return Contestant(
        name=name,
        says=says,
        job=_job(contest, "onnx", name, {"bundle": str(bundle.folder)}),
        interpreter=contest.interpreters["onnx"],
        isa=NATIVE,
        nbytes=sum(file.nbytes for file in bundle.manifest.files),
    )


def rival_contestants(contest: Contest, rival: Rival, *, say: Say) -> list[Contestant]:
    """A rival under each instruction limit that makes a difference to it.

    Raises:
        UsageError: llama.cpp is wanted, and the model is no GGUF file.
        WorkerFailed: its files cannot be made.
    """
    if rival.runtime == "onnx":
        return [bundle_contestant(contest, contest.fp32, rival.name, rival.says)]
    options, nbytes = _options(contest, rival, say)
    isas = isas_of(rival.runtime, contest.isas, contest.flags)
    names = [rival.name if isa == NATIVE else f"{rival.name}@{isa}" for isa in isas]
    return [
        Contestant(
            name=name,
            says=rival.says,
            job=_job(contest, rival.runtime.removesuffix(".cpp"), name, options),
            interpreter=contest.interpreters[rival.runtime],
            isa=isa,
            nbytes=nbytes,
            normalised=rival.runtime == "llama.cpp",
        )
        for name, isa in zip(names, isas, strict=True)
    ]


def _job(contest: Contest, runtime: str, name: str, options: dict[str, str]) -> Job:
    rows_file = str(contest.front.work / f"rows-{name}.f32")
    return Job(
        runtime=runtime, threads=contest.threads, windows=contest.windows, options={**options, "rows_file": rows_file}
    )


def _options(contest: Contest, rival: Rival, say: Say) -> tuple[dict[str, str], int | None]:
    """What the worker needs to know, and the size of the file it runs."""
    match rival.runtime:
        case "torch":
            front = contest.front
            cut = str(front.split_layer)
            return {"model": front.model, "revision": front.revision, "split_layer": cut, "dtype": rival.setting}, None
        case "openvino":
            return _openvino_options(contest, rival, say)
        case "llama.cpp":
            files = _gguf_of(contest, rival, say)
            paths = {"shallow": str(files.shallow), "deep": str(files.deep), "below_cut": str(files.below_cut)}
            return paths, files.below_cut.stat().st_size
        case unknown:
            raise AssertionError(unknown)


def _openvino_options(contest: Contest, rival: Rival, say: Say) -> tuple[dict[str, str], int]:
    graph = contest.fp32.graph_path
    if "nncf" not in rival.packages:
        return {"graph": str(graph), "precision": rival.setting}, graph.stat().st_size
    made = contest.front.work / f"openvino-{rival.setting}-{sha256_of_file(graph)[:12]}.xml"
    options = {"graph": str(made), "precision": ""}
    if not made.exists():
        say(f"sf-bench: quantizing for {rival.name} (kept in {made})")
        job = Job(
            runtime="openvino_int8",
            threads=contest.threads,
            windows=contest.calibration,
            options={**options, "source": str(graph), "how": rival.setting},
        )
        interpreter = contest.interpreters["openvino"]
        maker = Contestant(f"{rival.name}-maker", rival.says, job, interpreter, NATIVE, None)
        contest.start(maker).close()
    return options, made.stat().st_size + made.with_suffix(".bin").stat().st_size


def _gguf_of(contest: Contest, rival: Rival, say: Say) -> GgufFiles:
    if contest.gguf is None:
        raise UsageError(
            "llama.cpp needs the model as a .gguf file", cure="give --gguf FILE, or leave llama.cpp out of --against"
        )
    return gguf_files(contest.front, contest.gguf, quantization=rival.setting, say=say)
