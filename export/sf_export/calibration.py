"""The text that quantization is measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from sf_contract.errors import DataError
from sf_contract.manifest import TaskSpec
from sf_contract.records import BadRow, read_records
from sf_contract.samples import TextTokenizer, UnusableRecord, fill_template

PROSE_NAME: Final = "the prose that comes with sf-export"
MAX_SEQUENCES_TOKENS: Final = 2048
SEQUENCE_TOKENS: Final = 128
USEFUL_TOKENS: Final = 512
"""Fewer say little: a p99 then rests on a handful of tokens, and what is rare in the text is not seen at all."""

_PIECE_CHARACTERS: Final = 2_000
"""A longer line of plain text is measured in pieces, so that a file without line breaks is used whole."""

_PLAIN_TEXT_SUFFIXES: Final = frozenset({".txt", ".md", ""})
_MAX_TEXT_CHARACTERS: Final = 16 * 1024 * 1024

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

    def shortfall(self) -> str | None:
        """What to tell the person when the text is too short to measure well; None when it is not."""
        if self.tokens >= USEFUL_TOKENS:
            return None
        return (
            f"{self.name} gives only {self.tokens} tokens to measure on; errors measured on fewer than {USEFUL_TOKENS} "
            "are rough, so give a longer --calibration text"
        )


def read_calibration(path: Path | None, spec: TaskSpec, tokenizer: TextTokenizer, *, max_tokens: int) -> Calibration:
    """Sequences of a text or data file, or of the program's own prose.

    Raises:
        DataError: the file cannot be read, or holds nothing usable.
    """
    name = PROSE_NAME if path is None else path.name
    found = _Found()
    sequences = _tokenized(_texts_of(path, spec, found), tokenizer, min(max_tokens, SEQUENCE_TOKENS))
    if not sequences:
        raise DataError(
            f"{path or name} holds no text to measure on: {found.why_nothing()}",
            cure="give --calibration a text file, or a data file with the columns the template names",
        )
    return Calibration(name=name, sequences=sequences)


@dataclass(slots=True)
class _Found:
    """What a file held, for the person whose file held nothing usable."""

    lines: int = 0
    reason: str = ""

    def why_nothing(self) -> str:
        if self.reason:
            return self.reason
        return "its text has no tokens" if self.lines else "it is empty, or has blank lines only"


def _texts_of(path: Path | None, spec: TaskSpec, found: _Found) -> Iterator[str]:
    if path is None:
        yield from _pieces(resources.files("sf_export").joinpath("prose.txt").read_text(encoding="utf-8"), found)
    elif path.suffix.lower() in _PLAIN_TEXT_SUFFIXES:
        yield from _pieces(_read_text(path), found)
    else:
        yield from _texts_of_records(path, spec, found)


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            text = stream.read(_MAX_TEXT_CHARACTERS)
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}", cure="check the path") from problem
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{path} is not UTF-8 text (byte {problem.start} is {problem.object[problem.start]:#04x})",
            cure="give a text file; convert text in another encoding to UTF-8",
        ) from problem
    if "\0" in text:
        raise DataError(
            f"{path} is not text: character {text.index(chr(0))} is a zero byte",
            cure="give a text file, not a binary one",
        )
    return text


def _texts_of_records(path: Path, spec: TaskSpec, found: _Found) -> Iterator[str]:
    template = spec.template.prompt + (spec.template.completion or "")
    for row in read_records(path):
        try:
            if isinstance(row, BadRow):
                raise UnusableRecord(row.reason)
            text = fill_template(template, row.record)
        except UnusableRecord as problem:
            found.reason = found.reason or f"line {row.line}: {problem}"
            continue
        if text.strip():
            found.lines += 1
            yield text


def _pieces(text: str, found: _Found) -> Iterator[str]:
    for line in filter(None, map(str.strip, text.splitlines())):
        found.lines += 1
        for start in range(0, len(line), _PIECE_CHARACTERS):
            yield line[start : start + _PIECE_CHARACTERS]


def _tokenized(texts: Iterable[str], tokenizer: TextTokenizer, longest: int) -> tuple[TokenIds, ...]:
    sequences: list[TokenIds] = []
    tokens = 0
    for text in texts:
        try:
            token_ids: Sequence[int] = tokenizer.encode(text, special_tokens=True, max_tokens=longest)
        except UnusableRecord:
            continue
        if token_ids:
            sequences.append(tuple(token_ids))
            tokens += len(token_ids)
        if tokens >= MAX_SEQUENCES_TOKENS:
            break
    return tuple(sequences)
