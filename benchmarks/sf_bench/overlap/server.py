"""The real server for a measurement: a run of its own, its ingest process, its trainer process, and how far it has trained."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.ingest_only import running_ingest
from sf_contract.bundle import Bundle
from sf_contract.errors import TrainingFailed
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings

READY_S: Final = 600.0
LEAVE_S: Final = 120.0
_POLL_S: Final = 0.05


class RunningServer:
    """Both processes, the trainer ready to train.

    Attributes:
        address: where devices are received.
    """

    def __init__(self, address: str, run: RunFolder, trainer: subprocess.Popen[bytes]) -> None:
        self.address = address
        self._metrics = run.metrics_path
        self._trainer = trainer
        self._read_bytes = 0
        self._trained = 0
        self.steps = 0
        self.busy_s = 0.0

    def trained(self) -> int:
        """Samples trained on so far, each as often as it was.

        Raises:
            TrainingFailed: the trainer ended with an error, which it has told itself.
        """
        if self._trainer.poll():
            raise TrainingFailed(
                f"the trainer ended with {self._trainer.returncode}", cure="read its message above, and start again"
            )
        with self._metrics.open("rb") as stream:
            stream.seek(self._read_bytes)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            step = msgspec.json.decode(line, type=_Line)
            if step.kind == "step":
                self._trained = step.samples_trained
                self.steps += 1
                self.busy_s += step.seconds
        return self._trained

    def wait_until_ready(self) -> None:
        """Until the model is loaded.

        Raises:
            TrainingFailed: the trainer ended, or takes too long.
        """
        end_s = time.monotonic() + READY_S
        while not self._metrics.exists():
            if self._trainer.poll() is not None or time.monotonic() > end_s:
                raise TrainingFailed(
                    "the trainer did not get ready", cure="read its message above; check --model and --bundle"
                )
            time.sleep(_POLL_S)


class _Line(msgspec.Struct, frozen=True):
    """What matters here of a line of the metrics log."""

    kind: str
    samples_trained: int = 0
    seconds: float = 0.0


@contextmanager
def running_server(bundle: Bundle, folder: Path, settings: TrainSettings) -> Iterator[RunningServer]:
    """Start both processes, and end them; what they left is the caller's to remove.

    Raises:
        ServerUnreachable, TrainingFailed: one of them ended at once.
    """
    run = RunFolder(folder / "run")
    settings = msgspec.structs.replace(settings, run=str(run.path), bind="tcp://127.0.0.1:*")
    with running_ingest(bundle, run, settings=settings) as address:
        command = [sys.executable, "-m", "sf_server.training.process", "--run", str(run.path)]
        with (folder / "trainer.log").open("wb") as log:
            trainer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            server = RunningServer(address, run, trainer)
            try:
                server.wait_until_ready()
                yield server
            except TrainingFailed as problem:
                said = (folder / "trainer.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise TrainingFailed(f"{problem.what}: {said[-1] if said else ''}", cure=problem.cure) from problem
        finally:
            _end(trainer)


def _end(trainer: subprocess.Popen[bytes]) -> None:
    trainer.terminate()
    try:
        trainer.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        trainer.kill()
        trainer.wait()
    if trainer.stdin is not None:
        trainer.stdin.close()
