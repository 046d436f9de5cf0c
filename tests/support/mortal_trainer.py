"""Trainers as real processes that die when they are told to: forked from a process that has everything loaded already.

`python -m support.mortal_trainer MODEL STORE` reads one `Life` per line and answers each with one `Death`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
import torch

from sf_server.store.store import Store
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.learner import Learner
from sf_server.training.metrics import MetricsLog
from sf_server.training.trainer import Ending, Surroundings, Trainer
from support.trainer_harness import build_learner, train_settings

EVENTS: Final = (
    "mortal.step",
    "open",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.remove",
    "os.truncate",
    "shutil.rmtree",
)
EXIT_STOPPED: Final = 143
CHECKPOINT_EVERY_S: Final = 25.0
"""Of a clock that goes on by a second whenever it is asked: a checkpoint about every fifth step."""


class Life(msgspec.Struct, frozen=True):
    """One process: train in this folder until the moment, or to the end.

    Attributes:
        event: at the n-th step or file operation it gets the signal; None: never.
        after_s: so many seconds after its start it gets the signal, if it still lives; None: never.
        number: the signal.
    """

    folder: str
    event: int | None = None
    after_s: float | None = None
    number: int = signal.SIGKILL


class Death(msgspec.Struct, frozen=True):
    """How it ended, how long it took, and how many events it counted, where it could still say so."""

    how: Literal["done", "stopped", "killed", "failed"]
    seconds: float
    events: int = 0


def main() -> None:
    """Serve lives until standard input ends."""
    model, store = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    learner = build_learner(model)
    for line in sys.stdin:
        death = _live(msgspec.json.decode(line, type=Life), learner, store)
        print(msgspec.json.encode(death).decode(), flush=True)


def _live(life: Life, learner: Learner, store: Path) -> Death:
    began_s = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        try:
            code = _train(life, learner, store, writer)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    if life.after_s is not None:
        time.sleep(life.after_s)  # the moment itself, not a wait for anything
        os.kill(child, life.number)
    _, status = os.waitpid(child, 0)
    counted = os.read(reader, 32)
    os.close(reader)
    code = os.waitstatus_to_exitcode(status)
    how = {0: "done", EXIT_STOPPED: "stopped", -signal.SIGKILL: "killed"}.get(code, "failed")
    return Death(how=how, seconds=time.monotonic() - began_s, events=int(counted or 0))


def _train(life: Life, learner: Learner, store_path: Path, writer: int) -> int:
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
    ticks = iter(range(1, 1 << 30))
    checkpoints = Checkpoints(Path(life.folder) / "checkpoints")
    around = Surroundings(
        say=lambda _: None,
        stopped=lambda: bool(stops),
        wait=lambda _: sys.exit("there is nothing to wait for"),
        train_device=torch.device("cpu"),
        clock=lambda: float(next(ticks)),
    )
    torch.manual_seed(0)  # as every new trainer process does
    newest = checkpoints.load_newest()
    with (
        Store.open_read_only(store_path) as store,
        MetricsLog(Path(life.folder) / "metrics.jsonl", after_step=newest.progress.step if newest else 0) as metrics,
    ):
        trainer = Trainer(
            learner,
            store,
            train_settings(checkpoint_every_s=CHECKPOINT_EVERY_S),
            checkpoints=checkpoints,
            metrics=metrics,
            around=around,
        )
        trainer.restore()
        count = _count_events(learner, life)
        ending = trainer.run()
        os.write(writer, str(count()).encode())
    return 0 if ending is Ending.DONE else EXIT_STOPPED


def _count_events(learner: Learner, life: Life) -> Callable[[], int]:
    """Count what happens from here on, and send this process its signal at the right event."""
    events = 0

    def note(event: str, _: object) -> None:
        nonlocal events
        if event in EVENTS:
            events += 1
            if events == life.event:
                os.kill(os.getpid(), life.number)

    step = learner.step

    def noted(*args: object, **named: object) -> object:
        sys.audit("mortal.step")
        result = step(*args, **named)
        sys.audit("mortal.step")
        return result

    learner.step = noted
    sys.addaudithook(note)
    return lambda: events


if __name__ == "__main__":
    main()
