"""The one door to the `tokenizers` library. Import this module only where the extra that brings it is installed."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from sf_contract.errors import BundleError


class BundleTokenizer:
    """The bundle's tokenizer; the same token ids on every machine."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as problem:  # the library raises bare Exception for anything it cannot parse
            raise BundleError(f"{path} is not a tokenizer: {problem}", cure="export the bundle again") from problem
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        """Token ids of a text."""
        if max_tokens is None:
            return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)
        self._tokenizer.enable_truncation(max_tokens)
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)
        finally:
            self._tokenizer.no_truncation()

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))
