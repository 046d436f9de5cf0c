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
import pytest
import torch
from safetensors.torch import load_file

from sf_contract.activations import EncodedSample
from sf_contract.bundle import open_bundle
from sf_contract.manifest import Geometry, Task, TaskSpec, Template
from sf_export.bundle_writer import write_bundle
from sf_model.checkpoint import open_checkpoint
from sf_server.run_folder import RunFolder
from sf_server.scale.place import LOCAL_RANK
from sf_server.scale.rank_learner import RankLearner
from sf_server.scale.stage_learner import StageLearner
from sf_server.settings import TrainSettings
from sf_server.store.store import Store
from sf_server.training.checkpoints import Checkpoints, Snapshot
from sf_server.training.learner import Learner, Part
from sf_server.training.process import main as train_process
from support.tiny_bundle import TOKEN_IDS, tiny_files, tiny_manifest
from support.tiny_models import HIDDEN, LAYERS, VOCABULARY
from support.tolerances import FP32_RELATIVE, TOGETHER_RELATIVE
from support.trainer_harness import made_samples, outbox_of

CUT: Final = 1
MAX_TOKENS: Final = 32
DEVICE: Final = "d"
SITE_SAMPLES: Final = 40
LONGEST_S: Final = 240
"""No process of a test lives longer, should it wait for something that never comes."""


def bundle_for(model: Path, out: Path, *, task: Task = Task.TEXT_CLASSIFICATION) -> Path:
    """A bundle of a tiny model whose graph nobody runs: the trainer reads its manifest only."""
    files = tiny_files(vectors=bytes(4 * HIDDEN * sum(map(len, TOKEN_IDS))))
    manifest = msgspec.structs.replace(
        tiny_manifest(files),
        base_model=open_checkpoint(str(model)).identity,
        geometry=Geometry(split_layer=CUT, layers=LAYERS, hidden=HIDDEN, vocabulary=VOCABULARY, max_tokens=MAX_TOKENS),
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
            device=DEVICE,
            outbox=outbox_of(DEVICE),
            bundle_id=bundle_id,
            self_test_error=0.0,
            waiting_samples=0,
            now_s=0.0,
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
        address: where they meet instead of in a file.
    """

    def __init__(
        self,
        runs: Sequence[Path],
        meeting: Path,
        before: Callable[[int], object] = lambda _: None,
        *,
        address: str | None = None,
    ) -> None:
        meeting.mkdir()
        where = address or f"file://{meeting}/ranks"
        self.logs = [meeting / f"{number}.log" for number in range(len(runs))]
        self.pids = [self._start(number, runs, where, before) for number in range(len(runs))]

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
            signal.alarm(LONGEST_S)
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


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The published adapter."""
    found: dict[str, torch.Tensor] = load_file(run / "adapter" / "adapter_model.safetensors")
    return found


def saved(run: Path) -> Snapshot:
    """The newest checkpoint."""
    snapshot = Checkpoints(run / "checkpoints").load_newest()
    assert snapshot is not None
    return snapshot


def assert_same_training(found: Path, wanted: Path) -> None:
    """Two runs made the same steps, but for rounding."""
    assert [line["loss"] for line in metrics(found)] == pytest.approx(
        [line["loss"] for line in metrics(wanted)], rel=FP32_RELATIVE
    )
    for key in ("step", "epoch", "samples", "tokens", "samples_trained"):
        assert [line[key] for line in metrics(found)] == [line[key] for line in metrics(wanted)], key
    assert_close(weights(found), weights(wanted))


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same weights, but for rounding."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert float((found[name] - tensor).norm()) <= TOGETHER_RELATIVE * float(tensor.norm()), name


def die_in_step(step: int) -> None:
    """Let this process kill itself in the middle of its n-th step, when it has computed its gradient."""
    _in_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def be_stopped_in_step(step: int) -> None:
    """Let this process get SIGTERM in the middle of its n-th step."""
    _in_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM))


def _in_step(step: int, act: Callable[[], object]) -> None:
    steps = iter(range(1, 1 << 30))
    for kind in (RankLearner, StageLearner):
        _act_before(kind, lambda: act() if next(steps) == step else None)


def _act_before(kind: type[Learner], act: Callable[[], object]) -> None:
    shared = kind._shared

    def acting(self: Learner, part: Part, rate_factor: float) -> tuple[float, float]:
        act()
        return shared(self, part, rate_factor)

    kind._shared = acting


class Site:
    """Makes run folders of one model and one bundle, and starts trainers in them."""

    def __init__(self, folder: Path, model: Path, bundle: Path) -> None:
        self.folder, self.model, self.bundle = folder, model, bundle
        self._crews = 0

    def run(self, name: str, samples: Sequence[EncodedSample] | None = None, **settings: object) -> Path:
        """A run that has all its samples already."""
        return new_run(
            self.folder / name,
            bundle=self.bundle,
            model=self.model,
            samples=made_samples(0, SITE_SAMPLES) if samples is None else samples,
            **settings,
        )

    def nodes(self, name: str, *parts: Sequence[EncodedSample], **settings: object) -> list[Path]:
        """The runs of several nodes."""
        common = {"nodes": len(parts), "rendezvous": "127.0.0.1:9999", **settings}
        return [self.run(f"{name}-{node}", part, node_rank=node, **common) for node, part in enumerate(parts)]

    def start(self, *runs: Path, before: Callable[[int], object] = lambda _: None, address: str | None = None) -> Crew:
        """One process per run named; the same run several times: so many processes of one node."""
        self._crews += 1
        return Crew(runs, self.folder / f"crew-{self._crews}", before, address=address)

    def train(self, *runs: Path) -> Path:
        """Start, and wait for a good end; the first run."""
        self.start(*runs).succeed()
        return runs[0]
