"""What the accuracy comparison trains on and is judged by: which phrases, and nothing that decides how they are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from sf_contract.errors import DataError
from sf_contract.manifest import TaskSpec
from sf_contract.records import Record, Row, read_records
from sf_contract.samples import (
    LABEL_COLUMN,
    TextTokenizer,
    TokenizedSample,
    UnusableRecord,
    template_fields,
    tokenize,
)

_SALT = 0xACC
"""Keeps the choice of phrases independent of everything else that is drawn from the same seed."""


class PoolCounts(msgspec.Struct, frozen=True):
    """What became of the training file's rows: `left` may be trained on, the others were left out for one reason each."""

    rows: int
    unusable: int
    repeated: int
    in_validation: int
    too_long: int
    left: int


@dataclass(frozen=True, slots=True)
class Phrases:
    """Training pool and validation set, tokenized.

    Attributes:
        pool: what training phrases are drawn from.
        validation: every usable row of the validation file, in its order.
        counts: how the pool came about.
    """

    pool: tuple[TokenizedSample, ...]
    validation: tuple[TokenizedSample, ...]
    counts: PoolCounts

    def drawn(self, samples: int, *, seed: int) -> list[TokenizedSample]:
        """The training phrases of one seed, in the order they arrive.

        Raises:
            DataError: the pool is smaller than that.
        """
        if samples > len(self.pool):
            raise DataError(
                f"the training file gives {len(self.pool)} phrases ({self.counts}), and {samples} are asked for",
                cure="give fewer --samples, or allow longer phrases with --max-phrase-tokens",
            )
        order = np.random.default_rng([seed, _SALT]).permutation(len(self.pool))[:samples]
        return [self.pool[index] for index in order]

    def digest(self, drawn: Sequence[TokenizedSample]) -> str:
        """SHA-256 of all token ids and labels that a cell sees: equal digests mean equal inputs."""
        seen = [_seen(sample) for part in (drawn, self.validation) for sample in part]
        return hashlib.sha256(msgspec.json.encode(seen)).hexdigest()

    def judged_by(self, samples: int | None) -> Phrases:
        """The same with at most so many validation samples, drawn once for all seeds, in the file's order."""
        if samples is None or samples >= len(self.validation):
            return self
        chosen = np.random.default_rng(_SALT).permutation(len(self.validation))[:samples]
        return replace(self, validation=tuple(self.validation[index] for index in sorted(chosen)))


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How a bundle turns a record into a sample."""

    spec: TaskSpec
    tokenizer: TextTokenizer
    max_tokens: int

    def sample(self, record: Record) -> TokenizedSample:
        """Raises UnusableRecord."""
        return tokenize(record, self.spec, self.tokenizer, max_tokens=self.max_tokens)

    def text(self, record: Record) -> str:
        """The record's own words, without the template around them."""
        return " ".join(record.get(field, "") for field in template_fields(self.spec.template.prompt)).strip()


def read_phrases(train: Path, validation: Path, *, how: Tokenization, max_phrase_tokens: int | None) -> Phrases:
    """Pool and validation set.

    A repeated phrase is taken once, and not at all when it has several labels; a phrase that occurs word for word inside a
    validation text is left out, so nothing that is judged was trained on; so is one of more than `max_phrase_tokens`.

    Raises:
        DataError: a file cannot be read, or the validation file holds nothing usable.
    """
    judged = list(_usable(read_labelled(validation, how.spec.labels), how))
    if not judged:
        raise DataError(
            f"{validation} holds no usable row",
            cure=f"give rows with {', '.join(template_fields(how.spec.template.prompt))} and {LABEL_COLUMN}",
        )
    records = read_labelled(train, how.spec.labels)
    usable = list(_usable(records, how))
    distinct = _distinct(usable, how)
    apart = _apart_from(distinct, [how.text(record) for record, _ in judged])
    pool = tuple(s for s in apart if max_phrase_tokens is None or len(s.token_ids) <= max_phrase_tokens)
    counts = PoolCounts(
        rows=len(records),
        unusable=len(records) - len(usable),
        repeated=len(usable) - len(distinct),
        in_validation=len(distinct) - len(apart),
        too_long=len(apart) - len(pool),
        left=len(pool),
    )
    return Phrases(pool=pool, validation=tuple(sample for _, sample in judged), counts=counts)


def read_problems(train: Path, validation: Path, *, how: Tokenization, max_tokens: int | None) -> Phrases:
    """Pool and held-out set for causal language modelling; all of them whole: what is too long is left out, not cut.

    A prompt is taken once, and not at all when it is held out.

    Args:
        max_tokens: of prompt and completion together; None for what the bundle allows.

    Raises:
        DataError: a file cannot be read, or the validation file holds nothing usable.
    """
    judged = [found for found in _usable(read_labelled(validation, ()), how) if _is_whole(found[1], max_tokens)]
    if not judged:
        raise DataError(
            f"{validation} holds no usable row that is short enough",
            cure=f"give rows with {', '.join(template_fields(how.spec.template.prompt))}, or more --max-phrase-tokens",
        )
    records = read_labelled(train, ())
    usable = list(_usable(records, how))
    first = {how.text(record): sample for record, sample in reversed(usable)}
    held_out = {how.text(record) for record, _ in judged}
    apart = [sample for text, sample in reversed(first.items()) if text not in held_out]
    pool = tuple(sample for sample in apart if _is_whole(sample, max_tokens))
    counts = PoolCounts(
        rows=len(records),
        unusable=len(records) - len(usable),
        repeated=len(usable) - len(first),
        in_validation=len(first) - len(apart),
        too_long=len(apart) - len(pool),
        left=len(pool),
    )
    return Phrases(pool=pool, validation=tuple(sample for _, sample in judged), counts=counts)


def read_labelled(path: Path, labels: Sequence[str]) -> list[Record]:
    """Records of a `.parquet`, `.jsonl` or `.csv` file; a label that is a number names a class by its index.

    Raises:
        DataError: the file cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        records: list[Record] = _parquet_records(path)
    else:
        records = [row.record for row in read_records(path) if isinstance(row, Row)]
    return [_with_named_label(record, labels) for record in records]


def _seen(sample: TokenizedSample) -> list[object]:
    seen: list[object] = [sample.token_ids, sample.label]
    return seen if sample.targets is None else [*seen, sample.targets.tolist()]


def _is_whole(sample: TokenizedSample, max_tokens: int | None) -> bool:
    return not sample.was_cut and (max_tokens is None or len(sample.token_ids) <= max_tokens)


def _with_named_label(record: Record, labels: Sequence[str]) -> Record:
    label = record.get(LABEL_COLUMN, "")
    if label in labels or not label.isdecimal() or int(label) >= len(labels):
        return record
    return {**record, LABEL_COLUMN: labels[int(label)]}


def _parquet_records(path: Path) -> list[Record]:
    try:
        # Needed for this format only; the library ships no types.
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as problem:
        raise DataError(
            f"{path} is Parquet, and pyarrow is not installed", cure="pip install pyarrow, or give a .jsonl file"
        ) from problem
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as problem:
        raise DataError(f"{path} cannot be read: {problem}", cure="check the path and the file") from problem
    return [{key: str(value) for key, value in row.items() if value is not None} for row in rows]


def _usable(records: Sequence[Record], how: Tokenization) -> Iterator[tuple[Record, TokenizedSample]]:
    for record in records:
        try:
            yield record, how.sample(record)
        except UnusableRecord:
            continue


def _distinct(usable: Sequence[tuple[Record, TokenizedSample]], how: Tokenization) -> list[tuple[str, TokenizedSample]]:
    """Every text once, in order; none with two different labels."""
    first: dict[str, TokenizedSample] = {}
    contradicted: set[str] = set()
    for record, sample in usable:
        text = how.text(record)
        if first.setdefault(text, sample).label != sample.label:
            contradicted.add(text)
    return [(text, sample) for text, sample in first.items() if text not in contradicted]


def _apart_from(phrases: Sequence[tuple[str, TokenizedSample]], texts: Sequence[str]) -> list[TokenizedSample]:
    """Phrases that are not, word for word, a part of one of the texts."""
    judged = "\n".join(f" {text} " for text in texts)
    return [sample for text, sample in phrases if f" {text} " not in judged]
