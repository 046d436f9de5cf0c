"""A run of the server's own trainer on samples that are put into its store as ingest would have put them there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sf_bench.quality.results import Effort
from sf_contract.activations import EncodedSample
from sf_contract.bundle import Bundle
from sf_contract.codec import EncodedRows, WireCodec
from sf_contract.errors import TrainingFailed
from sf_contract.messages import Role
from sf_contract.samples import TokenizedSample
from sf_server.run_folder import RunFolder
from sf_server.settings import DEFAULT_MAX_STORE_BYTES, TrainSettings
from sf_server.store.store import Store

SAMPLES_PER_COMMIT: Final = 256
EXIT_INTERRUPTED: Final = frozenset({130, 143, -signal.SIGINT, -signal.SIGTERM})

Say = Callable[[str], None]
RowsOf = Callable[[Sequence[int]], EncodedRows]


@dataclass(frozen=True, slots=True)
class Sender:
    """A device that is not there: its name, its bundle, and what computes its rows."""

    name: str
    bundle_id: str
    rows_of: RowsOf


def fill_store(
    path: Path, samples: Sequence[TokenizedSample], *, senders: Sequence[Sender], holders: Sequence[int], say: Say
) -> None:
    """Store the samples in their order, each under its holder's name with its holder's rows; a whole store is left alone.

    Args:
        holders: index into `senders` of every sample.
    """
    if path.exists():
        with Store.open(path, max_bytes=DEFAULT_MAX_STORE_BYTES) as store:
            if store.counts().train_samples == len(samples):
                return
    for file in path.parent.glob(path.name + "*"):
        file.unlink()
    say(f"computing the rows of {len(samples)} samples")
    ordinals = [0] * len(senders)
    with Store.open(path, max_bytes=DEFAULT_MAX_STORE_BYTES) as store:
        for number, sender in enumerate(senders):
            store.note_hello(
                device=sender.name,
                outbox=_outbox(number),
                bundle_id=sender.bundle_id,
                self_test_error=0.0,
                waiting_samples=0,
                now_s=0,
            )
        for start in range(0, len(samples), SAMPLES_PER_COMMIT):
            with store.commit():
                for sample, holder in list(zip(samples, holders, strict=True))[start : start + SAMPLES_PER_COMMIT]:
                    sender = senders[holder]
                    store.add(
                        device=sender.name,
                        outbox=_outbox(holder),
                        bundle_id=sender.bundle_id,
                        samples=[_encoded(sample, sender, ordinals[holder])],
                    )
                    ordinals[holder] += 1


def train(folder: RunFolder, *, say: Say) -> Effort:
    """Train the run to its end, or from its last checkpoint on; afterwards its adapter is published.

    Raises:
        KeyboardInterrupt: the trainer was told to stop, and has saved where it was.
        TrainingFailed: it ended with an error, which it has told itself.
    """
    began_s = time.monotonic()
    exit_code = run_trainer(folder.path)
    if exit_code in EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if exit_code:
        raise TrainingFailed(
            f"the trainer ended with {exit_code}", cure="read its message above, and start again to go on"
        )
    steps = [line for line in read_metrics(folder.metrics_path) if line.get("kind") == "step"]
    say(f"trained in {len(steps)} steps")
    tokens = sum(int(str(line["tokens"])) for line in steps)
    return Effort(steps=len(steps), tokens=tokens, seconds=time.monotonic() - began_s)


def run_trainer(run: Path) -> int:
    """The trainer process of `sf-server train`; its exit code. It leaves when this process does."""
    command = [sys.executable, "-m", "sf_server.training.process", "--run", str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def read_metrics(path: Path) -> list[dict[str, object]]:
    """The whole lines of a metrics log."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [msgspec.json.decode(line) for line in lines if line.endswith(b"\n")]


def make_run(path: Path, settings: TrainSettings, *, bundles: Sequence[Bundle]) -> RunFolder:
    """The run folder; one that was made before is left as it is."""
    folder = RunFolder(path)
    if not folder.exists():
        folder.create(settings, bundle_ids=[bundle.bundle_id for bundle in bundles])
    return folder


def no_rows(token_ids: Sequence[int]) -> EncodedRows:
    """Rows for a store whose rows nobody reads."""
    empty = np.zeros((len(token_ids), 0), dtype=np.float32)
    return EncodedRows(codec=WireCodec.FP32, rows=np.zeros((len(token_ids), 1), dtype=np.float32), scales=empty)


def _encoded(sample: TokenizedSample, sender: Sender, ordinal: int) -> EncodedSample:
    rows = sender.rows_of(sample.token_ids)
    return EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows, label=sample.label, targets=sample.targets)


def _outbox(number: int) -> str:
    return f"{number:032x}"
