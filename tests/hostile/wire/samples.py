"""Batches and samples that are well-formed, and wrong. The attacker is a device that was let in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import numpy as np

from hostile.wire.attacks import Frames, on_server
from hostile.wire.peers import BUNDLE_ID, CREDIT_BYTES, Mallory, headed, header, sample
from sf_contract.activations import EncodedSample, pack, pack_rows
from sf_contract.codec import EncodedRows, WireCodec
from sf_contract.limits import MIB
from sf_contract.messages import (
    Ack,
    AlreadyStored,
    Finished,
    PredictRequest,
    RefusalCode,
    RejectionCode,
    Role,
    Stored,
)
from support.tiny_bundle import HIDDEN

MALFORMED = RefusalCode.MALFORMED
ANOTHER_BUNDLE = "cd" * 32


@on_server(RefusalCode.HELLO_FIRST, has_greeted=False)
def work_before_the_greeting(mallory: Mallory) -> Iterator[Frames]:
    """Who skips the greeting skips the checks of bundle, self-test and name: without a session nothing is looked at."""
    yield mallory.sends(sample(0))
    yield mallory.says(Finished(samples=1, rejected=0, skipped_rows=0))


@on_server(RefusalCode.BUNDLE)
def a_batch_of_another_bundle(mallory: Mallory) -> Iterator[Frames]:
    """Rows of another front end would train the adapter on numbers that mean something else."""
    yield mallory.says(*pack(ANOTHER_BUNDLE, [sample(0)]))


@on_server(MALFORMED)
def rows_of_another_shape_or_dtype(mallory: Mallory) -> Iterator[Frames]:
    """Rows that are wider, fewer, more, or of another type than the bundle's codec are read past their end, or misread."""
    message, (rows, scales) = pack(BUNDLE_ID, [sample(0)])
    yield mallory.says(message, (rows[:-1], scales[:-1]))
    yield mallory.says(message, (np.concatenate([rows, rows]), np.concatenate([scales, scales])))
    yield mallory.says(message, (rows[:, :-1].copy(), scales))
    yield mallory.says(message, (rows.view(np.uint8), scales))
    yield mallory.says(message, (rows.astype(np.float32), scales))
    yield mallory.says(message, (rows.reshape(-1), scales))
    yield mallory.says(message, (rows, scales.astype(np.float16)))
    yield mallory.says(message, (rows, scales.view(np.int32)))
    yield mallory.says(message, (rows,))


@on_server(MALFORMED)
def tokens_without_rows(mallory: Mallory) -> Iterator[Frames]:
    """256 samples of 32,768 tokens are announced: the sum is compared with the rows that came before anything is split."""
    message, buffers = pack(BUNDLE_ID, [sample(0)])
    large = msgspec.structs.replace(message.samples[0], tokens=32_768)
    yield mallory.says(msgspec.structs.replace(message, samples=(large,) * 256), buffers)


@on_server(MALFORMED)
def targets_where_the_task_has_none(mallory: Mallory) -> Iterator[Frames]:
    """A third buffer would be stored by code that takes what it gets."""
    message, buffers = pack(BUNDLE_ID, [sample(0)])
    yield mallory.says(message, (*buffers, np.zeros(3, dtype=np.int32)))


@on_server(RejectionCode.NOT_FINITE)
def scales_that_are_no_numbers(mallory: Mallory) -> Iterator[Frames]:
    """One NaN in one sample makes the loss NaN, and with it the adapter of everybody. So does a scale so large that the row
    overflows when it is decoded."""
    for ordinal, scale in enumerate((np.nan, np.inf, -np.inf, 3e38, -3e38)):
        yield mallory.sends(_with(sample(ordinal), scale=scale))


@on_server(Stored)
def rows_at_the_ends_of_their_range(mallory: Mallory) -> Iterator[Frames]:
    """-128 is a level that the codec never writes. It decodes to a finite number like any other, and is stored as it came."""
    for ordinal, level in enumerate((-128, 127)):
        yield mallory.sends(_with(sample(ordinal), level=level))


@on_server(RejectionCode.LABEL)
def labels_that_the_bundle_does_not_have(mallory: Mallory) -> Iterator[Frames]:
    """A label is an index into the weights of the classification head: one too many reads beside them."""
    yield mallory.sends(sample(0, label=2))
    yield mallory.sends(sample(1, label=9_999))
    yield mallory.sends(sample(2, label=None))


@on_server(MALFORMED)
def labels_that_no_bundle_has(mallory: Mallory) -> Iterator[Frames]:
    """Beyond what any bundle may have, the message itself is refused."""
    for label in (-1, 10_000, 2**63):
        yield _unchecked(mallory, label=label)


@on_server(RejectionCode.TOO_LONG)
def a_sample_that_is_longer_than_the_bundle_allows(mallory: Mallory) -> Iterator[Frames]:
    """Attention takes memory with the square of the length: one long sample would end the trainer."""
    yield mallory.sends(sample(0, tokens=17))
    yield mallory.sends(sample(1, tokens=1_000))


@on_server(MALFORMED)
def ordinals_out_of_range(mallory: Mallory) -> Iterator[Frames]:
    """From 2^53 on, numbers in JSON are not exact: two ordinals would become one. Negative ones would sort before all."""
    for ordinal in (-1, 2**53, 2**64, 0.5):
        yield _unchecked(mallory, ordinal=ordinal)


@on_server(Stored)
def the_last_ordinal_there_is(mallory: Mallory) -> Iterator[Frames]:
    """An ordinal far ahead leaves a gap, and nothing is set aside for gaps: its rows are the only ones that are stored."""
    yield mallory.sends(sample(2**53 - 1))


@on_server(AlreadyStored, is_prepared=True)
def another_sample_under_an_ordinal_that_is_taken(mallory: Mallory) -> Iterator[Frames]:
    """Exchanging a sample after others have been trained on it would make training depend on when: the first one stays."""
    yield mallory.sends(sample(7, seed=1))
    yield mallory.sends(sample(7, seed=2))


@on_server(AlreadyStored)
def one_ordinal_twice_in_a_batch(mallory: Mallory) -> Iterator[Frames]:
    """The same within one message, where both are judged before either is stored: the store itself keeps one."""
    yield mallory.sends(sample(3, seed=1), sample(3, seed=2))


@on_server(AlreadyStored, is_prepared=True)
def the_same_message_a_hundred_times(mallory: Mallory) -> Iterator[Frames]:
    """Somebody who records messages and repeats them stores nothing again. (Encryption drops them before that.)"""
    for _ in range(100):
        yield mallory.sends(sample(5))


@on_server(RejectionCode.LABEL)
def a_bad_sample_behind_good_ones(mallory: Mallory) -> Iterator[Frames]:
    """One bad sample must not take the others with it, nor the other way round: each has a verdict of its own."""
    yield mallory.sends(sample(0), sample(1), sample(2, label=7))


@on_server(RefusalCode.OVER_CREDIT, memory_bytes=4 * MIB)
def more_than_was_granted(mallory: Mallory) -> Iterator[Frames]:
    """A device that ignores its credit wants the server to hold its rows in memory: the batch is dropped unexamined."""
    per_sample = sample(0, tokens=16).nbytes
    for _ in range(3):
        yield mallory.sends(*(sample(n, tokens=16) for n in range(min(256, CREDIT_BYTES // per_sample + 1))))


@on_server(MALFORMED)
def empty_batches_and_batches_without_end(mallory: Mallory) -> Iterator[Frames]:
    """A batch has 1 to 256 samples, and a sample has at least one token."""
    good = msgspec.to_builtins(sample_header())
    yield _raw_batch(samples=[])
    yield _raw_batch(samples=[good] * 257)
    yield _raw_batch(samples=[{**good, "tokens": 0}])
    yield _raw_batch(samples=[{**good, "tokens": 32_769}])
    yield _raw_batch(samples=[{**good, "role": "test"}])
    yield _raw_batch(samples=None)


@on_server(Ack)
def a_thousand_samples_of_one_token(mallory: Mallory) -> Iterator[Frames]:
    """Small samples cost more than their bytes; there are at most 256 in a batch, and each group is one transaction."""
    for start in range(0, 1_000, 100):
        yield mallory.sends(*(sample(start + n, tokens=1) for n in range(100)))


def sample_header() -> msgspec.Struct:
    """The header of a good sample."""
    return pack(BUNDLE_ID, [sample(0)])[0].samples[0]


def _with(good: EncodedSample, *, scale: float | None = None, level: int | None = None) -> EncodedSample:
    """A sample with another scale in its last row, or with one level everywhere."""
    scales, rows = good.rows.scales.copy(), good.rows.rows.copy()
    if scale is not None:
        scales[-1, -1] = scale
        rows[-1, :] = 127
    if level is not None:
        rows[:] = level
    return replace(good, rows=EncodedRows(codec=WireCodec.INT8, rows=rows, scales=scales))


def _raw_batch(**changes: object) -> Frames:
    from hostile.wire.peers import header

    return headed(header({"type": "batch", "bundle_id": BUNDLE_ID, "samples": [], **changes}))


def _unchecked(mallory: Mallory, **changes: object) -> Frames:
    """A batch of one sample whose header says something else."""
    _, buffers = pack(BUNDLE_ID, [sample(0)])
    fields = {"ordinal": 0, "tokens": 3, "role": Role.TRAIN, "label": 1, **changes}
    specs = [
        {"dtype": "int8", "shape": [3, HIDDEN]},
        {"dtype": "float32", "shape": list(buffers[1].shape)},
    ]
    frames = mallory.sends(sample(0))
    frames[1] = header({"type": "batch", "bundle_id": BUNDLE_ID, "samples": [fields]}, specs)
    return frames


@on_server(MALFORMED)
def a_request_for_predictions_where_samples_are_taken(mallory: Mallory) -> Iterator[Frames]:
    """Predictions would tell an attacker what was learnt, before anybody published it: ingest has none to give."""
    rows = sample(0).rows
    request = PredictRequest(device="mallory", bundle_id=BUNDLE_ID, number=0, tokens=(rows.tokens,))
    yield mallory.says(request, pack_rows([rows]))
    yield mallory.says(request)
