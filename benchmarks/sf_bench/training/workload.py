"""Samples and batches: the same for everyone, made once, in the form each of them takes them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from sf_bench.quality.fronts import bundle_rows
from sf_bench.training.base import Base
from sf_bench.training.protocol import Prepared
from sf_contract.activations import NO_TARGET, EncodedSample
from sf_contract.codec import EncodedRows, WireCodec, encode_rows
from sf_contract.errors import DataError
from sf_contract.limits import MIB
from sf_contract.messages import Role
from sf_contract.records import Row, read_records
from sf_contract.samples import TokenizedSample, UnusableRecord, tokenize
from sf_contract.tokenizer import open_tokenizer
from sf_server.store.store import Store
from sf_server.store.stored import SampleInfo
from sf_server.training.lift import Lifter, Lifts, make_lifts
from sf_server.training.lifted import LiftedFile, LiftedIdentity
from sf_server.training.lifting import dtype_name
from sf_server.training.schedule import Budget, Position, plan_batches

BUNDLE_ID: Final = "b" * 64
OUTBOX: Final = "0" * 32
MAX_STORE_BYTES: Final = 64 * 1024 * MIB


class Workload(msgspec.Struct, frozen=True):
    """Samples, by number from 0, and the batches of all turns. In the store a sample's `seq` is its number plus 1."""

    token_ids: tuple[tuple[int, ...], ...]
    labels: tuple[int | None, ...]
    targets: tuple[tuple[int, ...] | None, ...]
    batches: tuple[tuple[int, ...], ...]

    def tokens(self, batch: Sequence[int]) -> int:
        """Real tokens of a batch."""
        return sum(len(self.token_ids[number]) for number in batch)

    def padding(self) -> float:
        """Part of the padded batches that is padding."""
        real = sum(map(self.tokens, self.batches))
        padded = sum(len(batch) * max(len(self.token_ids[number]) for number in batch) for batch in self.batches)
        return 1 - real / padded


def load_workload(base: Base) -> Workload:
    """As `prepare` left it."""
    return msgspec.json.decode(_path(base, "workload.json").read_bytes(), type=Workload)


def open_store(base: Base) -> Store:
    """The samples as devices sent them."""
    int4 = None if base.bundle is None else base.bundle.int4_parameters()
    return Store.open_read_only(_path(base, "store.sqlite"), int4={} if int4 is None else {BUNDLE_ID: int4})


def open_lifted(base: Base, lifts: Lifts) -> LiftedFile:
    """The samples as they enter the first layer with LoRA."""
    identity = LiftedIdentity(
        weights_sha256="0" * 64,
        config_sha256="0" * 64,
        layer=lifts.layer,
        hidden=base.hidden,
        dtype=dtype_name(base.dtype),
    )
    return LiftedFile.open(_path(base, "lifted.sqlite"), identity, say=lambda _: None)


def prepare(base: Base) -> Prepared:
    """Make the files that contestants read.

    Raises:
        DataError: the data has too few usable rows.
    """
    workload = _made(base)
    _path(base, "workload.json").write_bytes(msgspec.json.encode(workload))
    _fill_store(base, workload)
    return Prepared(
        samples=len(workload.token_ids),
        tokens=sum(map(len, workload.token_ids)),
        padding=workload.padding(),
        lift_s=_lift(base) if base.settings.lora_first_layer else None,
        task=base.task.value,
        about=base.about(),
    )


def lifts_of(base: Base, lifts_model: object) -> Lifts | None:
    """What lifts samples to the layer where LoRA begins."""
    return make_lifts(
        lifts_model,  # type: ignore[arg-type]  # a loaded model
        cuts={BUNDLE_ID: base.split_layer},
        layer=base.settings.lora_first_layer or base.split_layer,
        device=base.device,
    )


def _made(base: Base) -> Workload:
    settings = base.settings
    turns = settings.rounds + 1
    wanted = turns * settings.steps * settings.batch_samples
    samples = list(itertools.islice(_samples(base), wanted))
    if len(samples) < settings.batch_samples:
        raise DataError(
            f"only {len(samples)} usable rows", cure=f"give at least {settings.batch_samples}, better {wanted}"
        )
    infos = [SampleInfo(seq=n, device="d", tokens=len(s.token_ids), label=s.label) for n, s in enumerate(samples)]
    budget = Budget(max_tokens=settings.batch_tokens, max_samples=settings.batch_samples)
    plan = plan_batches(infos, seed=settings.seed, position=Position(), budget=budget)
    batches = itertools.islice(itertools.cycle(plan), turns * settings.steps)
    return Workload(
        token_ids=tuple(tuple(sample.token_ids) for sample in samples),
        labels=tuple(sample.label for sample in samples),
        targets=tuple(None if s.targets is None else tuple(map(int, s.targets)) for s in samples),
        batches=tuple(map(tuple, batches)),
    )


def _samples(base: Base) -> Iterator[TokenizedSample]:
    if base.bundle is None:
        yield from _random_samples(base)
        return
    tokenizer, manifest = open_tokenizer(base.bundle), base.bundle.manifest
    for row in read_records(Path(str(base.settings.data))):
        if isinstance(row, Row):
            try:
                yield tokenize(row.record, manifest.task, tokenizer, max_tokens=manifest.geometry.max_tokens)
            except UnusableRecord:
                continue


def _random_samples(base: Base) -> Iterator[TokenizedSample]:
    """Lengths from a quarter of the longest to the longest; the second half of each is the completion."""
    generator = np.random.default_rng(base.settings.seed)
    longest = base.settings.random_tokens
    while True:
        ids = generator.integers(0, base.vocabulary, size=int(generator.integers(max(4, longest // 4), longest + 1)))
        targets = np.full(len(ids), NO_TARGET, dtype=np.int32)
        targets[len(ids) // 2 : -1] = ids[len(ids) // 2 + 1 :]
        yield TokenizedSample(token_ids=ids.tolist(), label=None, targets=targets)


def _fill_store(base: Base, workload: Workload) -> None:
    path = _path(base, "store.sqlite")
    for file in (path, *path.parent.glob("store.sqlite-*"), *path.parent.glob("lifted.sqlite*")):
        file.unlink(missing_ok=True)
    with Store.open(path, max_bytes=MAX_STORE_BYTES) as store, store.commit():
        store.note_hello(
            device="d", outbox=OUTBOX, bundle_id=BUNDLE_ID, self_test_error=0.0, waiting_samples=0, now_s=0.0
        )
        for sample in _encoded(base, workload):
            store.add(device="d", outbox=OUTBOX, bundle_id=BUNDLE_ID, samples=[sample])


def _encoded(base: Base, workload: Workload) -> Iterator[EncodedSample]:
    rows_of = None if base.bundle is None else bundle_rows(base.bundle, threads=base.settings.threads)
    for number, ids in enumerate(workload.token_ids):
        targets = workload.targets[number]
        yield EncodedSample(
            ordinal=number,
            role=Role.TRAIN,
            rows=_random_rows(base, number, len(ids)) if rows_of is None else rows_of(ids),
            label=workload.labels[number],
            targets=None if targets is None else np.array(targets, dtype=np.int32),
        )


def _random_rows(base: Base, number: int, tokens: int) -> EncodedRows:
    rows = np.random.default_rng([base.settings.seed, number]).standard_normal((tokens, base.hidden))
    return encode_rows(rows.astype(np.float32), WireCodec.INT8)


def _lift(base: Base) -> float | None:
    lifts = lifts_of(base, base.load().model)
    if lifts is None:
        return None
    with open_store(base) as store, open_lifted(base, lifts) as lifted:
        lifter = Lifter(lifts, lifted, store, device=base.device, say=lambda _: None)
        infos = store.sample_infos(role=Role.TRAIN)
        began_s = time.perf_counter()
        lifter.prepare(infos)
        return time.perf_counter() - began_s


def _path(base: Base, name: str) -> Path:
    return Path(base.settings.work) / name
