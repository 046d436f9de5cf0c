"""From texts to activations on the server, with the bundle's front end or with the fp32 one: for evaluation and prediction."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sf_contract.bundle import Bundle
from sf_contract.codec import EncodedRows, WireCodec
from sf_contract.errors import DataError
from sf_contract.front_end import open_front_end, run_self_test
from sf_contract.records import BadRow, Record, read_records
from sf_contract.samples import TokenizedSample, UnusableRecord, tokenize
from sf_contract.tokenizer import BundleTokenizer, open_tokenizer
from sf_model.front import FrontModel, cut_front
from sf_model.pairs import pair_separator, tell_segments
from sf_server.pieces import Pieces
from sf_server.store.stored import SampleInfo, StoredSample
from sf_server.training.validation import batches_by_tokens

RowsOf = Callable[[Sequence[int]], EncodedRows]
"""Activations at the cut of one token sequence."""


class FrontKind(enum.StrEnum):
    """Which front end computes the activations."""

    BUNDLE = "bundle"
    FP32 = "fp32"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that could not be used."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A row of a file, and the sample it is."""

    record: Record
    sample: TokenizedSample


def open_text_front(pieces: Pieces, kind: FrontKind, bundle: Bundle | None = None) -> RowsOf:
    """A front end for text on the server: the quantized graph that devices with this bundle use, or the base model's own
    first layers, up to the same cut, in fp32.

    Args:
        bundle: one of the run's; None is `pieces.bundle`.

    Raises:
        SelfTestFailed: this machine computes the quantized graph in another way than the devices it is made for.
    """
    bundle = bundle or pieces.bundle
    if kind is FrontKind.BUNDLE:
        front_end = open_front_end(bundle, threads=torch.get_num_threads())
        run_self_test(bundle, front_end)
        return lambda token_ids: front_end.run([token_ids])[0]
    model = pieces.load_model(torch.float32).model
    tell_segments(model, pair_separator(pieces.checkpoint, bundle.manifest.task.template.prompt))
    front = cut_front(model, bundle.manifest.geometry.split_layer)
    return lambda token_ids: _fp32_rows(front, token_ids)


def tokenize_record(bundle: Bundle, tokenizer: BundleTokenizer, record: Record, *, need_label: bool) -> TokenizedSample:
    """One record as a device with this bundle tokenizes it; raises UnusableRecord."""
    manifest = bundle.manifest
    return tokenize(record, manifest.task, tokenizer, max_tokens=manifest.geometry.max_tokens, need_label=need_label)


def labelled_rows(bundle: Bundle, path: Path) -> tuple[list[LabelledRow], list[Skipped]]:
    """Usable rows of a file with known answers, exactly as a device tokenizes them, and the rows that were left out.

    Raises:
        DataError: the file cannot be read, or no row is usable.
    """
    tokenizer = open_tokenizer(bundle)
    used: list[LabelledRow] = []
    skipped: list[Skipped] = []
    for row in read_records(path):
        try:
            if isinstance(row, BadRow):
                raise UnusableRecord(row.reason)
            sample = tokenize_record(bundle, tokenizer, row.record, need_label=True)
            used.append(LabelledRow(record=row.record, sample=sample))
        except UnusableRecord as problem:
            skipped.append(Skipped(row.line, str(problem)))
    if not used:
        first = f"; line {skipped[0].line}: {skipped[0].reason}" if skipped else ""
        raise DataError(
            f"{path} holds no usable row{first}", cure="give rows with the columns the bundle's template names"
        )
    return used, skipped


def as_stored(
    rows: Sequence[LabelledRow], rows_of: RowsOf, *, max_tokens: int, by: str | None = None
) -> Iterator[list[StoredSample]]:
    """Samples with their activations in batches of at most `max_tokens` padded tokens, shortest first.

    Each is computed alone, as on a device; only the batch at hand is held.

    Args:
        by: a column that says whose a row is; rows without it, or all when it is None, are the file's.
    """
    samples = [row.sample for row in rows]
    infos = [
        SampleInfo(
            seq=index,
            device=row.record.get(by or "", "file"),
            tokens=len(row.sample.token_ids),
            label=row.sample.label,
        )
        for index, row in enumerate(rows)
    ]
    for group in batches_by_tokens(sorted(infos, key=lambda info: (info.tokens, info.seq)), max_tokens):
        yield [_stored(info, samples[info.seq], rows_of) for info in group]


def _stored(info: SampleInfo, sample: TokenizedSample, rows_of: RowsOf) -> StoredSample:
    return StoredSample(
        seq=info.seq, device=info.device, rows=rows_of(sample.token_ids), label=sample.label, targets=sample.targets
    )


@torch.no_grad()
def _fp32_rows(front: FrontModel, token_ids: Sequence[int]) -> EncodedRows:
    input_ids = torch.tensor([list(token_ids)])
    rows = front(input_ids, torch.ones_like(input_ids))[0].numpy()
    return EncodedRows(codec=WireCodec.FP32, rows=rows, scales=np.zeros((len(rows), 0), dtype=np.float32))
