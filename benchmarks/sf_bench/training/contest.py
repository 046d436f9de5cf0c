"""Everyone in a process of their own, taking turns: on a machine that others use too, speeds drift, so ratios are taken
within a round."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from sf_bench.rivals.turns import plan_turns
from sf_bench.training.protocol import Failed, Job, Prepared, Profile, Ready, Reply, Turn
from sf_bench.training.settings import TrainingBenchSettings
from sf_contract.errors import UsageError

Say = Callable[[str], None]
T = TypeVar("T")

CONTESTANTS: Final[Mapping[str, str]] = {
    "split": "epoch 1: rows at the cut from the store; LoRA from the cut on",
    "split-lifted": "later epochs with --lora-first-layer: rows lifted to it; LoRA from there on",
    "hugging-face": "Trainer + PEFT: the whole model from token ids; LoRA in all layers",
    "hugging-face-by-length": "the same on batches of its own, which Transformers' sampler groups by length",
    "hugging-face-upper": "as hugging-face with LoRA from the cut on: the weights that split trains",
    "hugging-face-lifted-layers": "as hugging-face with LoRA from --lora-first-layer on: the weights that split-lifted trains",
}
BASELINE: Final = "hugging-face"
_NEEDS_FIRST_LAYER: Final = ("split-lifted", "hugging-face-lifted-layers")


class WorkerFailed(Exception):
    """A worker cannot go on; the text says why."""


class Contestant(msgspec.Struct, frozen=True):
    """What one contestant did: `turns` has one entry per round."""

    name: str
    ready: Ready
    turns: tuple[Turn, ...]


class Contest(msgspec.Struct, frozen=True):
    """Everything that was measured."""

    prepared: Prepared
    contestants: tuple[Contestant, ...]
    profile: Profile | None


def names_of(settings: TrainingBenchSettings) -> tuple[str, ...]:
    """Who takes part.

    Raises:
        UsageError: one does not exist, or needs a setting that is not given.
    """
    possible = [name for name in CONTESTANTS if settings.lora_first_layer or name not in _NEEDS_FIRST_LAYER]
    wrong = [name for name in settings.contestants if name not in possible]
    if wrong:
        raise UsageError(
            f"--contestants {','.join(wrong)} cannot take part",
            cure=f"choose from {','.join(possible)}; the others need --lora-first-layer",
        )
    return settings.contestants or tuple(possible)


def hold_contest(settings: TrainingBenchSettings, *, say: Say) -> Contest:
    """Prepare the samples, open everyone, and let them take turns; the first turn of each does not count.

    Raises:
        UsageError: a contestant cannot take part, or a worker failed; its log is named.
    """
    names = names_of(settings)
    Path(settings.work).mkdir(parents=True, exist_ok=True)
    try:
        say("making samples and batches")
        with _worker("prepare", settings) as worker:
            prepared = worker.answer(Prepared)
        return _taking_turns(settings, names, prepared, say)
    except WorkerFailed as problem:
        raise UsageError(str(problem), cure="see the log; settings that need less may help") from problem


def _taking_turns(settings: TrainingBenchSettings, names: tuple[str, ...], prepared: Prepared, say: Say) -> Contest:
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    with ExitStack() as open_workers:
        workers: dict[str, _Worker] = {}
        ready: dict[str, Ready] = {}
        for name in names:  # one after the other, so that nobody loads while another one warms up
            say(f"opening {name}")
            workers[name] = open_workers.enter_context(_worker(name, settings))
            ready[name] = workers[name].answer(Ready)
            workers[name].ask("turn", Turn)
        for number, order in enumerate(plan_turns(names, settings.rounds, seed=settings.seed), start=1):
            say(f"round {number} of {settings.rounds}")
            for name in order:
                turns[name].append(workers[name].ask("turn", Turn))
        ours = next((name for name in names if name.startswith("split")), None)
        profile = workers[ours].ask("profile", Profile) if settings.profile and ours else None
    contestants = tuple(Contestant(name, ready[name], tuple(turns[name])) for name in names)
    return Contest(prepared=prepared, contestants=contestants, profile=profile)


class _Worker:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def ask(self, request: str, kind: type[T]) -> T:
        """Make a request; the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as problem:
            raise WorkerFailed(f"a worker has ended (log: {self._log})") from problem
        return self.answer(kind)

    def answer(self, kind: type[T]) -> T:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"a worker has ended (log: {self._log})")
        found = msgspec.json.decode(line, type=Reply)
        if isinstance(found, Failed):
            raise WorkerFailed(f"{found.reason} (log: {self._log})")
        if not isinstance(found, kind):
            raise WorkerFailed(f"unexpected answer {line[:80]!r} (log: {self._log})")
        return found


@contextmanager
def _worker(name: str, settings: TrainingBenchSettings) -> Iterator[_Worker]:
    log = Path(settings.work) / f"{name}.log"
    job = msgspec.json.encode(Job(name=name, settings=settings)).decode()
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(settings.threads))
    environment = {**os.environ, **counts, "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "sf_bench.training.worker", job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
            env=environment,
        )
    with process:  # on leaving, pipes are closed and the worker ends
        try:
            yield _Worker(process, log)
        except BaseException:
            process.kill()
            raise
