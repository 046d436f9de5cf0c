"""One cell of the accuracy comparison: train one seed on one arm's rows with the server's own trainer, and judge the result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch

from sf_bench.accuracy_results import (
    FP32,
    Cell,
    CellKey,
    Evaluation,
    RowError,
    cell_path,
    claim,
    read_cell,
)
from sf_contract.activations import EncodedSample
from sf_contract.bundle import Bundle
from sf_contract.codec import decode_rows, relative_row_errors
from sf_contract.errors import AlreadyRunning, MismatchError
from sf_contract.messages import Role
from sf_contract.samples import TokenizedSample
from sf_model.back import BackEnd
from sf_model.checkpoint import Checkpoint
from sf_server.pieces import Pieces, choose_device, choose_dtype
from sf_server.results.text_front import FrontKind, RowsOf, as_stored, open_text_front
from sf_server.run_folder import RunFolder, write_atomically
from sf_server.settings import DEFAULT_MAX_STORE_BYTES, TrainSettings
from sf_server.store.store import Store
from sf_server.store.stored import StoredSample
from sf_server.training.batch_tensors import make_batch
from sf_server.training.checkpoints import Checkpoints
from sf_server.training.learner import Learner
from sf_server.training.metrics import MetricsLog
from sf_server.training.objective import judge
from sf_server.training.process import make_learner
from sf_server.training.trainer import Surroundings, Trainer

_OUTBOX: Final = "0" * 32
_SAMPLES_PER_COMMIT: Final = 256
_EVALUATION_TOKENS: Final = 2048

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Arm:
    """Whose rows are trained on.

    Attributes:
        name: `fp32` or the bundle folder's name.
        kind: which front end computes them.
        bundle: computes the rows, and in any case says how texts become tokens.
    """

    name: str
    kind: FrontKind
    bundle: Bundle

    @property
    def rows(self) -> str:
        """What the rows depend on: `fp32` or the bundle's id."""
        return FP32 if self.kind is FrontKind.FP32 else self.bundle.bundle_id


class CellRunner:
    """Computes the cells of one arm; the arm's validation rows are computed once, when first needed.

    Args:
        work: the folder of the whole comparison.
        settings: of the training; the seed is put in by each cell.
        validation: samples the results are judged by.
        fp32_rows: judge with fp32 rows too.
    """

    def __init__(
        self,
        arm: Arm,
        *,
        checkpoint: Checkpoint,
        settings: TrainSettings,
        work: Path,
        validation: Sequence[TokenizedSample],
        fp32_rows: bool,
        say: Say,
    ) -> None:
        self._arm = arm
        self._checkpoint = checkpoint
        self._settings = settings
        self._work = work
        self._samples = validation
        self._fp32_rows = fp32_rows
        self._say = say
        self._rows_of: RowsOf | None = None
        self._validation: dict[FrontKind, list[list[StoredSample]]] = {}

    def run(self, key: CellKey, phrases: Sequence[TokenizedSample], *, seed: int) -> Cell:
        """The cell, computed unless it was before; an interrupted training goes on from its last checkpoint.

        Raises:
            MismatchError: the work folder holds this cell, computed from other inputs, with other settings or judged less.
            AlreadyRunning: another process computes it.
        """
        path = cell_path(self._work, self._arm.name, seed)
        found = read_cell(path, key)
        if found is not None:
            self._check_judged(path, found)
            return found
        folder = RunFolder(path.with_suffix(""))
        with _alone_in(folder):
            claim(folder, key)
            cell = self._compute(key, phrases, pieces=self._pieces(folder, seed))
            write_atomically(path, msgspec.json.encode(cell))
        shutil.rmtree(folder.path)
        self._tell(seed, f"accuracy {cell.own.accuracy:.2%}, {cell.cpu_s:.0f} processor seconds")
        return cell

    def _compute(self, key: CellKey, phrases: Sequence[TokenizedSample], *, pieces: Pieces) -> Cell:
        began_s = time.process_time()
        seed = pieces.settings.seed
        self._fill_store(pieces, phrases)
        self._tell(seed, f"training on {len(phrases)} phrases")
        trainer, learner = self._train(pieces)
        self._tell(seed, "judging")
        own, fp32 = self._judged_rows(pieces, self._arm.kind), self._judged_rows(pieces, FrontKind.FP32)
        judged = evaluate(learner.back_end, own, device=pieces.device)
        whole: Evaluation | None = None
        if own is fp32:
            whole = judged
        elif self._fp32_rows:
            whole = evaluate(learner.back_end, fp32, device=pieces.device)
        first = own[0][0].rows
        return Cell(
            key=key,
            arm=self._arm.name,
            seed=seed,
            wire=first.codec.value,
            bytes_per_token=_bytes_per_token(own),
            row_error=None if own is fp32 else row_error(own, fp32),
            own=judged,
            whole=whole,
            steps=trainer.progress.step,
            tokens=trainer.progress.tokens,
            cpu_s=time.process_time() - began_s,
        )

    def _check_judged(self, path: Path, cell: Cell) -> None:
        if self._fp32_rows and cell.whole is None:
            raise MismatchError(
                f"{path} was computed without --fp32-rows", cure="leave the option out, or give another --work folder"
            )

    def _pieces(self, folder: RunFolder, seed: int) -> Pieces:
        device = choose_device(self._settings.device)
        return Pieces(
            folder=folder,
            settings=msgspec.structs.replace(self._settings, seed=seed, run=str(folder.path)),
            bundle=self._arm.bundle,
            checkpoint=self._checkpoint,
            device=device,
            dtype=choose_dtype(self._settings.dtype, device),
        )

    def _front(self, pieces: Pieces) -> RowsOf:
        if self._rows_of is None:
            self._rows_of = open_text_front(pieces, self._arm.kind)
        return self._rows_of

    def _judged_rows(self, pieces: Pieces, kind: FrontKind) -> list[list[StoredSample]]:
        if kind not in self._validation:
            rows_of = self._front(pieces) if kind is self._arm.kind else open_text_front(pieces, kind)
            self._validation[kind] = list(as_stored(self._samples, rows_of, max_tokens=_EVALUATION_TOKENS))
        return self._validation[kind]

    def _fill_store(self, pieces: Pieces, phrases: Sequence[TokenizedSample]) -> None:
        """The phrases' rows in a store, in order, as ingest would have stored what devices sent."""
        path = pieces.folder.store_path
        with Store.open(path, max_bytes=DEFAULT_MAX_STORE_BYTES) as store:
            if store.counts().train_samples == len(phrases):
                return
        for file in path.parent.glob(path.name + "*"):
            file.unlink()
        self._tell(pieces.settings.seed, f"computing the rows of {len(phrases)} phrases")
        rows_of = self._front(pieces)
        with Store.open(path, max_bytes=DEFAULT_MAX_STORE_BYTES) as store:
            store.note_hello(
                device="file", outbox=_OUTBOX, bundle_id=self._arm.rows, self_test_error=0.0, waiting_samples=0, now_s=0
            )
            for start in range(0, len(phrases), _SAMPLES_PER_COMMIT):
                part = enumerate(phrases[start : start + _SAMPLES_PER_COMMIT], start)
                samples = [
                    EncodedSample(ordinal=ordinal, role=Role.TRAIN, rows=rows_of(p.token_ids), label=p.label)
                    for ordinal, p in part
                ]
                store.add(device="file", outbox=_OUTBOX, bundle_id=self._arm.rows, samples=samples)

    def _train(self, pieces: Pieces) -> tuple[Trainer, Learner]:
        learner, _ = make_learner(pieces)
        checkpoints = Checkpoints(pieces.folder.checkpoints_path)
        around = Surroundings(
            say=lambda text: self._tell(pieces.settings.seed, text),
            stopped=lambda: False,
            wait=time.sleep,
            train_device=pieces.device,
        )
        newest = checkpoints.load_newest()
        with (
            Store.open_read_only(pieces.folder.store_path, int4=pieces.bundle.int4_parameters()) as store,
            MetricsLog(pieces.folder.metrics_path, after_step=newest.progress.step if newest else 0) as metrics,
        ):
            trainer = Trainer(learner, store, pieces.settings, checkpoints=checkpoints, metrics=metrics, around=around)
            trainer.restore()
            trainer.run()
        return trainer, learner

    def _tell(self, seed: int, text: str) -> None:
        self._say(f"{self._arm.name}, seed {seed}: {text}")


@torch.no_grad()
def evaluate(back_end: BackEnd, batches: Iterable[Sequence[StoredSample]], *, device: torch.device) -> Evaluation:
    """Which samples the back end gets right, in `seq` order; every `seq` from 0 must occur once."""
    back_end.model.train(False)
    hits: dict[int, bool] = {}
    loss_sum = 0.0
    for samples in batches:
        batch = make_batch(samples, back_end, device)
        outcome = judge(back_end(batch.rows, batch.mask), batch.labels)
        right = (outcome.predictions == batch.labels).tolist()
        hits.update(zip((sample.seq for sample in samples), right, strict=True))
        loss_sum += float(outcome.loss_sum)
    return Evaluation(hits=tuple(hits[seq] for seq in range(len(hits))), loss=loss_sum / len(hits))


def row_error(measured: Sequence[Sequence[StoredSample]], reference: Sequence[Sequence[StoredSample]]) -> RowError:
    """Relative error of each row after the wire, over all rows of the same samples in the same order."""
    errors = np.concatenate(
        [
            relative_row_errors(decode_rows(found.rows), decode_rows(wanted.rows))
            for some, others in zip(measured, reference, strict=True)
            for found, wanted in zip(some, others, strict=True)
        ]
    )
    return RowError(mean=float(errors.mean()), p99=float(np.percentile(errors, 99)))


@contextmanager
def _alone_in(folder: RunFolder) -> Iterator[None]:
    try:
        with folder.lock():
            yield
    except AlreadyRunning as problem:
        raise AlreadyRunning(
            f"another sf-bench accuracy computes {folder.path.name}",
            cure="wait for it, or choose other cells with --arms and --seeds",
        ) from problem


def _bytes_per_token(batches: Sequence[Sequence[StoredSample]]) -> float:
    rows = [sample.rows for batch in batches for sample in batch]
    return sum(row.nbytes for row in rows) / sum(row.tokens for row in rows)
