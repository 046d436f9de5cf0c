"""The text that quantization is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from sf_contract.errors import DataError
from sf_contract.manifest import TaskSpec
from sf_contract.records import Row, read_records
from sf_contract.samples import TextTokenizer, UnusableRecord, fill_template

PROSE_NAME: Final = "the prose that comes with sf-export"
MAX_SEQUENCES_TOKENS: Final = 2048
SEQUENCE_TOKENS: Final = 128
_PLAIN_TEXT_SUFFIXES: Final = frozenset({".txt", ".md", ""})
_MAX_TEXT_BYTES: Final = 16 * 1024 * 1024

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token sequences to measure on, and where they come from."""

    name: str
    sequences: tuple[TokenIds, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences together."""
        return sum(map(len, self.sequences))


def read_calibration(path: Path | None, spec: TaskSpec, tokenizer: TextTokenizer, *, max_tokens: int) -> Calibration:
    """Sequences of a text or data file, or of the program's own prose.

    Raises:
        DataError: the file cannot be read, or holds nothing usable.
    """
    if path is None:
        prose = resources.files("sf_export").joinpath("prose.txt").read_text(encoding="utf-8")
        name, texts = PROSE_NAME, iter(_lines(prose))
    else:
        name, texts = path.name, _texts_of(path, spec)
    sequences = _tokenized(texts, tokenizer, min(max_tokens, SEQUENCE_TOKENS))
    if not sequences:
        raise DataError(
            f"{name} holds no text to measure on",
            cure="give --calibration a text file, or a data file with the columns the template names",
        )
    return Calibration(name=name, sequences=sequences)


def _texts_of(path: Path, spec: TaskSpec) -> Iterator[str]:
    if path.suffix.lower() in _PLAIN_TEXT_SUFFIXES:
        return iter(_lines(_read_text(path)))
    return _texts_of_records(path, spec)


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return stream.read(_MAX_TEXT_BYTES)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}", cure="check the path") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8 text", cure="convert the file to UTF-8") from problem


def _texts_of_records(path: Path, spec: TaskSpec) -> Iterator[str]:
    template = spec.template.prompt + (spec.template.completion or "")
    for row in read_records(path):
        if isinstance(row, Row):
            try:
                yield fill_template(template, row.record)
            except UnusableRecord:
                continue


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _tokenized(texts: Iterable[str], tokenizer: TextTokenizer, longest: int) -> tuple[TokenIds, ...]:
    sequences: list[TokenIds] = []
    tokens = 0
    for text in texts:
        token_ids: Sequence[int] = tokenizer.encode(text, special_tokens=True, max_tokens=longest)
        if token_ids:
            sequences.append(tuple(token_ids))
            tokens += len(token_ids)
        if tokens >= MAX_SEQUENCES_TOKENS:
            break
    return tuple(sequences)
