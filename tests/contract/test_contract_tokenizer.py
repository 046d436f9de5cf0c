"""The bundle's tokenizer, packed and plain."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from sf_contract import limits
from sf_contract.bundle import Bundle
from sf_contract.errors import BundleError
from sf_contract.tokenizer import open_tokenizer


@dataclass(frozen=True)
class _Files:
    """As much of a bundle as the tokenizer needs."""

    name: str
    content: bytes

    def read(self, name: str) -> bytes:
        assert name == self.name
        return self.content

    @property
    def manifest(self) -> SimpleNamespace:
        return SimpleNamespace(tokenizer_file=self.name, geometry=SimpleNamespace(vocabulary=3))

    @property
    def tokenizer_path(self) -> Path:
        return Path("bundle") / self.name


def _bundle(name: str, content: bytes) -> Bundle:
    return cast(Bundle, _Files(name, content))


@pytest.fixture
def raw() -> bytes:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer.to_str().encode()


def test_a_packed_tokenizer_is_the_plain_one(raw: bytes) -> None:
    for name, content in (("tokenizer.json", raw), ("tokenizer.json.gz", gzip.compress(raw))):
        tokenizer = open_tokenizer(_bundle(name, content))
        assert tokenizer.encode("b a x", special_tokens=False, max_tokens=None) == [1, 0, 2]


def test_a_few_kilobytes_that_unpack_to_gigabytes_are_refused_without_unpacking_them(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_TOKENIZER_BYTES", len(raw) - 1)
    with pytest.raises(BundleError, match="unpacks to more than"):
        open_tokenizer(_bundle("tokenizer.json.gz", gzip.compress(raw)))


@pytest.mark.parametrize(
    "spoil",
    [lambda raw: raw, lambda raw: gzip.compress(raw)[:-9], lambda raw: gzip.compress(raw) + b"more", lambda _: b""],
    ids=["not packed", "cut off", "something behind", "empty"],
)
def test_damaged_packing_is_refused(raw: bytes, spoil) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json\.gz"):
        open_tokenizer(_bundle("tokenizer.json.gz", spoil(raw)))


@pytest.mark.parametrize(
    "words",
    [{"a": 0, "b": 3, "<unk>": 1}, {"a": 0, "<unk>": 3}, {"<unk>": 9}],
    ids=["as many words as the model has", "fewer words", "one word"],
)
@pytest.mark.parametrize("added", [0, 1, 2], ids=["no added token", "an added token", "two added tokens"])
def test_own_words_outside_the_vocabulary_are_found_however_few_they_are(words: dict[str, int], added: int) -> None:
    """An added token takes the first free id behind the words, and could hide a gap before them."""
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.add_tokens([f"<added-{number}>" for number in range(added)])
    with pytest.raises(BundleError, match=f"has a token {max(words.values())}, but the model knows 3"):
        open_tokenizer(_bundle("tokenizer.json", tokenizer.to_str().encode()))
