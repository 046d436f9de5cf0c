"""Trainer processes that train together: forked from the test's own process, which has everything loaded already."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import torch

from sf_contract.activations import EncodedSample
from sf_contract.bundle import open_bundle
from sf_contract.manifest import Geometry, Task, TaskSpec, Template
from sf_export.bundle_writer import write_bundle
from sf_model.checkpoint import open_checkpoint
from sf_server.run_folder import RunFolder
from sf_server.scale.place import LOCAL_RANK
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.training.process import main as train_process
from support.tiny_bundle import TOKEN_IDS, tiny_files, tiny_manifest
from support.tiny_models import HIDDEN, LAYERS, VOCABULARY
from support.trainer_harness import outbox_of

CUT: Final = 1
MAX_TOKENS: Final = 32
DEVICE: Final = "d"


def bundle_for(model: Path, out: Path, *, task: Task = Task.TEXT_CLASSIFICATION) -> Path:
    """A bundle of a tiny model whose graph nobody runs: the trainer reads its manifest only."""
    files = tiny_files(vectors=bytes(4 * HIDDEN * sum(map(len, TOKEN_IDS))))
    manifest = msgspec.structs.replace(
        tiny_manifest(files),
        base_model=open_checkpoint(str(model)).identity,
        geometry=Geometry(
            split_layer=CUT, layers=LAYERS, hidden=HIDDEN, vocabulary=VOCABULARY, max_tokens=MAX_TOKENS
        ),
        task=TaskSpec(task=task, template=Template(), labels=("no", "yes") if task is Task.TEXT_CLASSIFICATION else ()),
    )
    write_bundle(out, manifest, files)
    return out


def new_run(run: Path, *, bundle: Path, model: Path, samples: Sequence[EncodedSample], **settings: object) -> Path:
    """A run folder with a store that holds these samples, of one device that has finished."""
    bundle_id = open_bundle(bundle).bundle_id
    options: dict[str, object] = {
        "bundle": str(bundle), "run": str(run), "model": str(model), "expect_devices": 1, "epochs": 2, "dtype": "fp32",
        "device": "cpu", "threads": 1, "batch_samples": 5, "window_samples": 16, "warmup_steps": 3,
        "checkpoint_every_s": 1e-3, "rank_timeout_s": 60.0, "validate": False,
    }  # fmt: skip
    RunFolder(run).create(TrainSettings(**{**options, **settings}), bundle_ids=[bundle_id])
    with Store.open(run / "store.sqlite", max_bytes=64 << 20) as store:
        store.note_hello(
            device=DEVICE, outbox=outbox_of(DEVICE), bundle_id=bundle_id, self_test_error=0.0, waiting_samples=0, now_s=0.0
        )
        with store.commit():
            store.add(device=DEVICE, outbox=outbox_of(DEVICE), bundle_id=bundle_id, samples=samples)
        store.note_finished(outbox=outbox_of(DEVICE), skipped_rows=0, now_s=1.0)
    return run


def change(run: Path, **settings: object) -> None:
    """Other settings for the next start of a run."""
    record = RunFolder(run).record()
    changed = msgspec.structs.replace(record.settings, **settings)
    (run / "settings.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(record, settings=changed)))


class Crew:
    """Trainer processes that were started together.

    Args:
        runs: the run folder of each process, with several processes in one folder in a row.
        meeting: folder in which they meet.
        before: called in each process with its number, before it trains.
    """

    def __init__(self, runs: Sequence[Path], meeting: Path, before: Callable[[int], object] = lambda _: None) -> None:
        meeting.mkdir()
        self.logs = [meeting / f"{number}.log" for number in range(len(runs))]
        self.pids = [self._start(number, runs, f"file://{meeting}/ranks", before) for number in range(len(runs))]

    def codes(self) -> list[int]:
        """Exit codes of all, once all have ended."""
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]

    def succeed(self) -> None:
        """Wait until all have ended, and well."""
        codes = self.codes()
        assert not any(codes), f"{codes}\n" + self.said()

    def said(self) -> str:
        """What all have said."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in self.logs)

    def _start(self, number: int, runs: Sequence[Path], meeting: str, before: Callable[[int], object]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            log = self.logs[number].open("w", encoding="utf-8")
            sys.stdout = sys.stderr = log
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            local_rank = sum(run == runs[number] for run in runs[:number])
            os.environ[LOCAL_RANK] = str(local_rank)
            before(number)
            code = train_process(["--run", str(runs[number]), "--meeting", meeting])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


def metrics(run: Path) -> list[dict[str, float]]:
    """The steps of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def die_at_step(step: int) -> Callable[[], object]:
    """What makes this process kill itself when it begins its n-th step."""
    from sf_server.training.learner import Learner

    shared, steps = Learner._shared, iter(range(1, 1 << 30))

    def dying(self: Learner, *args: object, **named: object) -> object:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return shared(self, *args, **named)

    Learner._shared = dying
    return lambda: torch.zeros(0)
