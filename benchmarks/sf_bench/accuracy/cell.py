"""One cell of the accuracy comparison: train one seed on one arm's rows with the server's own trainer, and judge the result."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from sf_bench.accuracy.results import FP32, Cell, CellKey, RowError
from sf_bench.quality.cells import cell_path, finish_cell
from sf_bench.quality.fronts import bundle_rows, exact_rows
from sf_bench.quality.judging import adapted_back_end, evaluate, judged_rows
from sf_bench.quality.results import Effort, Evaluation
from sf_bench.quality.server_run import RowsOf, Say, Sender, fill_store, make_run, train
from sf_contract.bundle import Bundle
from sf_contract.codec import decode_rows, relative_row_errors
from sf_contract.errors import MismatchError
from sf_contract.samples import TokenizedSample
from sf_model.checkpoint import Checkpoint
from sf_server.pieces import choose_device, choose_dtype
from sf_server.results.text_front import FrontKind
from sf_server.run_folder import RunFolder
from sf_server.settings import TrainSettings
from sf_server.store.stored import StoredSample


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
        self._rows_of: dict[FrontKind, RowsOf] = {}
        self._validation: dict[FrontKind, list[list[StoredSample]]] = {}

    def run(self, key: CellKey, phrases: Sequence[TokenizedSample], *, seed: int) -> Cell:
        """The cell, computed unless it was before; an interrupted training goes on from its last checkpoint.

        Raises:
            MismatchError: the work folder holds this cell, computed from other inputs, with other settings or judged less.
            AlreadyRunning: another process computes it.
        """
        path = cell_path(self._work, self._arm.name, seed)
        cell = finish_cell(path, key, Cell, lambda folder: self._compute(key, phrases, folder=folder, seed=seed))
        self._check_judged(path, cell)
        return cell

    def _compute(self, key: CellKey, phrases: Sequence[TokenizedSample], *, folder: RunFolder, seed: int) -> Cell:
        began_s = _processor_s()
        effort, adapter = self._train(folder, phrases, seed)
        self._tell(seed, "judging")
        device = choose_device(self._settings.device)
        back_end = adapted_back_end(
            self._checkpoint,
            self._arm.bundle,
            adapter,
            dtype=choose_dtype(self._settings.dtype, device),
            device=device,
        )
        own, fp32 = self._judged_rows(self._arm.kind), self._judged_rows(FrontKind.FP32)
        judged = evaluate(back_end, own, device=device)
        whole: Evaluation | None = None
        if own is fp32:
            whole = judged
        elif self._fp32_rows:
            whole = evaluate(back_end, fp32, device=device)
        cell = Cell(
            key=key,
            arm=self._arm.name,
            seed=seed,
            wire=own[0][0].rows.codec.value,
            bytes_per_token=_bytes_per_token(own),
            row_error=None if own is fp32 else row_error(own, fp32),
            own=judged,
            whole=whole,
            steps=effort.steps,
            tokens=effort.tokens,
            cpu_s=_processor_s() - began_s,
        )
        self._tell(seed, f"accuracy {cell.own.accuracy:.2%}, {cell.cpu_s:.0f} processor seconds")
        return cell

    def _train(self, folder: RunFolder, phrases: Sequence[TokenizedSample], seed: int) -> tuple[Effort, Path]:
        """The real trainer on the phrases' rows, and the adapter that it published."""

        def tell(text: str) -> None:
            self._tell(seed, text)

        path = folder.path / "run"
        settings = msgspec.structs.replace(self._settings, seed=seed, run=str(path))
        # Also where the rows are exact the store names the bundle: it says at which cut they were taken.
        sender = Sender(name="file", bundle_id=self._arm.bundle.bundle_id, rows_of=self._rows(self._arm.kind))
        run = make_run(path, settings, bundles=[self._arm.bundle])
        fill_store(run.store_path, phrases, senders=[sender], holders=[0] * len(phrases), say=tell)
        tell(f"training on {len(phrases)} phrases")
        return train(run, say=tell), run.adapter_path

    def _check_judged(self, path: Path, cell: Cell) -> None:
        if self._fp32_rows and cell.whole is None:
            raise MismatchError(
                f"{path} was computed without --fp32-rows", cure="leave the option out, or give another --work folder"
            )

    def _rows(self, kind: FrontKind) -> RowsOf:
        if kind not in self._rows_of:
            exact = kind is FrontKind.FP32
            self._rows_of[kind] = (
                exact_rows(self._checkpoint, self._arm.bundle)
                if exact
                else bundle_rows(self._arm.bundle, threads=self._settings.threads)
            )
        return self._rows_of[kind]

    def _judged_rows(self, kind: FrontKind) -> list[list[StoredSample]]:
        if kind not in self._validation:
            self._validation[kind] = judged_rows(self._samples, self._rows(kind))
        return self._validation[kind]

    def _tell(self, seed: int, text: str) -> None:
        self._say(f"{self._arm.name}, seed {seed}: {text}")


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


def _bytes_per_token(batches: Sequence[Sequence[StoredSample]]) -> float:
    rows = [sample.rows for batch in batches for sample in batch]
    return sum(row.nbytes for row in rows) / sum(row.tokens for row in rows)


def _processor_s() -> float:
    """Of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
