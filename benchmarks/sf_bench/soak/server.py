"""The real `sf-server train` of a run of its own, and its two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sf_bench.soak.tiny_run import TinyRun
from sf_contract.errors import ServerUnreachable, TrainingFailed
from sf_server.run_folder import RunFolder
from sf_server.store.store import Store

TRAINER: Final = "sf_server.training.process"
FOREVER_SAMPLES: Final = 2**31 - 1
PATIENCE_S: Final = 120.0
SAVED_AND_LEFT: Final = 128 + signal.SIGTERM
_POLL_S: Final = 0.05
_PROGRAM: Final = "import sys; from sf_server.main import main; sys.exit(main())"


class _Line(msgspec.Struct, frozen=True):
    step: int = 0
    samples_trained: int = 0


@dataclass(frozen=True, slots=True)
class SoakServer:
    """A running server. `ingest` and `trainer` are process ids that stay the same as long as neither crashes."""

    run: RunFolder
    address: str
    ingest: int
    trainer: int
    process: subprocess.Popen[bytes]
    log: Path

    def steps(self) -> int:
        """Training steps so far."""
        lines = self.run.metrics_path.read_bytes().splitlines() if self.run.metrics_path.exists() else []
        whole = [line for line in lines[-2:] if line.endswith(b"}")]
        return msgspec.json.decode(whole[-1], type=_Line).step if whole else 0

    def stored(self) -> int:
        """Samples in its store."""
        with Store.open_read_only(self.run.store_path) as store:
            return store.counts().train_samples

    def check_alive(self) -> None:
        """Both processes are those that were there at the start.

        Raises:
            TrainingFailed: one of them has ended, whether or not it was started again.
        """
        for name, pid in {"ingest": self.ingest, "trainer": self.trainer}.items():
            if not Path(f"/proc/{pid}").exists() or self.process.poll() is not None:
                raise TrainingFailed(
                    f"the {name} process ended during the soak; its last words: {_last_words(self.log)}",
                    cure="read the whole log with --keep",
                )


@contextmanager
def running_server(tiny: TinyRun, folder: Path) -> Iterator[SoakServer]:
    """A server that trains on what devices send until it is told to stop, in its first epoch all the time.

    Raises:
        ServerUnreachable: it did not come up.
        TrainingFailed: at the end it did not save and leave as it was told to.
    """
    run, log = RunFolder(folder / "run"), folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(_command(tiny, run), stdout=stream, stderr=stream, env=_environment())
        try:
            yield _ready(process, run, log)
            process.terminate()
            exit_code = process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
    if exit_code != SAVED_AND_LEFT:
        raise TrainingFailed(
            f"told to stop, the server ended with {exit_code}: {_last_words(log)}",
            cure="read the whole log with --keep",
        )


def _command(tiny: TinyRun, run: RunFolder) -> list[str]:
    options = {
        "bundle": tiny.bundle.folder,
        "model": tiny.model,
        "run": run.path,
        "bind": "tcp://127.0.0.1:*",
        "expect-samples": FOREVER_SAMPLES,
        "step-deadline": 5,
        "window-samples": 64,
        "checkpoint-every-s": 5,
        "threads": 1,
    }
    return [
        sys.executable, "-c", _PROGRAM, "train", *(str(part) for key, value in options.items() for part in (f"--{key}", value))
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _ready(process: subprocess.Popen[bytes], run: RunFolder, log: Path) -> SoakServer:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and process.poll() is None:
        record, trainer = run.ingest_record(), _process_of(TRAINER, run)
        if record is not None and trainer is not None and run.metrics_path.exists():
            return SoakServer(
                run=run, address=record.address, ingest=record.pid, trainer=trainer, process=process, log=log
            )
        time.sleep(_POLL_S)
    raise ServerUnreachable(f"sf-server train did not come up: {_last_words(log)}", cure="start it by hand to see why")


def _process_of(module: str, run: RunFolder) -> int | None:
    """The process that runs a module for this run, as `/proc` tells it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile, or belongs to somebody else
                continue
            if module.encode() in words and os.fsencode(run.path) in words:
                return int(entry.name)
    return None


def _last_words(log: Path) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])
