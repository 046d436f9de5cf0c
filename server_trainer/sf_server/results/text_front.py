"""From texts to activations on the server, with the bundle's front end or with the fp32 one: for evaluation and prediction."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sf_contract.codec import EncodedRows, WireCodec
from sf_contract.errors import DataError
from sf_contract.front_end import open_front_end, run_self_test
from sf_contract.records import BadRow, Record, Row, read_records
from sf_contract.samples import TokenizedSample, UnusableRecord, tokenize
from sf_contract.tokenizer import BundleTokenizer, open_tokenizer
from sf_model.front import FrontModel, cut_front
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


def open_text_front(pieces: Pieces, kind: FrontKind) -> RowsOf:
    """The front end of a run: the quantized graph its devices use, or the base model's own first layers in fp32.

    Raises:
        SelfTestFailed: this machine computes the quantized graph in another way than the devices it is made for.
    """
    if kind is FrontKind.BUNDLE:
        front_end = open_front_end(pieces.bundle, threads=torch.get_num_threads())
        run_self_test(pieces.bundle, front_end)
        return lambda token_ids: front_end.run([token_ids])[0]
    front = cut_front(pieces.load_model(torch.float32).model, pieces.bundle.manifest.geometry.split_layer)
    return lambda token_ids: _fp32_rows(front, token_ids)


def read_samples(pieces: Pieces, path: Path, *, need_label: bool) -> Iterator[tuple[Row, TokenizedSample] | Skipped]:
    """Tokenized rows of a data file, in order, exactly as a device tokenizes them.

    Raises:
        DataError: the file cannot be read.
    """
    tokenizer = open_tokenizer(pieces.bundle)
    for row in read_records(path):
        if isinstance(row, BadRow):
            yield Skipped(row.line, row.reason)
            continue
        try:
            yield row, tokenize_record(pieces, tokenizer, row.record, need_label=need_label)
        except UnusableRecord as problem:
            yield Skipped(row.line, str(problem))


def tokenize_record(pieces: Pieces, tokenizer: BundleTokenizer, record: Record, *, need_label: bool) -> TokenizedSample:
    """One record as a device of this run tokenizes it; raises UnusableRecord."""
    manifest = pieces.bundle.manifest
    return tokenize(record, manifest.task, tokenizer, max_tokens=manifest.geometry.max_tokens, need_label=need_label)


def labelled_samples(pieces: Pieces, path: Path) -> tuple[list[TokenizedSample], list[Skipped]]:
    """Usable samples of a file with known answers, and the rows that were left out.

    Raises:
        DataError: no row is usable.
    """
    used: list[TokenizedSample] = []
    skipped: list[Skipped] = []
    for found in read_samples(pieces, path, need_label=True):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            used.append(found[1])
    if not used:
        first = f"; line {skipped[0].line}: {skipped[0].reason}" if skipped else ""
        raise DataError(
            f"{path} holds no usable row{first}", cure="give rows with the columns the bundle's template names"
        )
    return used, skipped


def as_stored(samples: Sequence[TokenizedSample], rows_of: RowsOf, *, max_tokens: int) -> Iterator[list[StoredSample]]:
    """Samples with their activations in batches of at most `max_tokens` padded tokens, shortest first.

    Each is computed alone, as on a device; only the batch at hand is held.
    """
    infos = [
        SampleInfo(seq=index, device="file", tokens=len(sample.token_ids), label=sample.label)
        for index, sample in enumerate(samples)
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
