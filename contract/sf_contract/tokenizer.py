"""The one door to the `tokenizers` library. Import this module only where the extra that brings it is installed."""

from __future__ import annotations

import zlib

from tokenizers import Tokenizer

from sf_contract import limits
from sf_contract.bundle import Bundle
from sf_contract.errors import BundleError
from sf_contract.samples import UnusableRecord


class BundleTokenizer:
    """The bundle's tokenizer; the same token ids on every machine.

    Args:
        raw: the tokenizer in the library's JSON format.
        vocabulary: token ids the model knows: 0 to `vocabulary` - 1.
        where: what errors call it.

    Raises:
        BundleError: it is no tokenizer, or its own words lie outside the vocabulary. Single tokens added to it later may:
            some checkpoints reserve one for images, which no text contains.
    """

    def __init__(self, raw: bytes, *, vocabulary: int, where: str = "the tokenizer") -> None:
        try:
            self._tokenizer = Tokenizer.from_buffer(raw)
        except Exception as problem:  # the library raises bare Exception for anything it cannot parse
            raise BundleError(f"{where} is not a tokenizer: {problem}", cure="export the bundle again") from problem
        largest = _largest_own_id(self._tokenizer, vocabulary)
        if largest >= vocabulary:
            raise BundleError(
                f"{where} has a token {largest}, but the model knows {vocabulary} tokens",
                cure="export the bundle again, with the tokenizer that belongs to the model",
            )
        self._vocabulary = vocabulary
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        """Token ids of a text.

        Raises:
            UnusableRecord: the text contains a token that the model does not know.
        """
        token_ids = self._encode(text, special_tokens=special_tokens, max_tokens=max_tokens)
        if max(token_ids, default=0) >= self._vocabulary:
            raise UnusableRecord(f"the text contains token {max(token_ids)}, which the model does not know")
        return token_ids

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _encode(self, text: str, *, special_tokens: bool, max_tokens: int | None) -> list[int]:
        if max_tokens is None:
            return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)
        self._tokenizer.enable_truncation(max_tokens)
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)
        finally:
            self._tokenizer.no_truncation()


def open_tokenizer(bundle: Bundle) -> BundleTokenizer:
    """The tokenizer of a verified bundle.

    Raises:
        BundleError: it is no tokenizer, or not one of the bundle's model, or was changed since the bundle was opened.
    """
    manifest = bundle.manifest
    raw = bundle.read(manifest.tokenizer_file)
    if manifest.tokenizer_file.endswith(".gz"):
        raw = _unpacked(raw, where=str(bundle.tokenizer_path))
    return BundleTokenizer(raw, vocabulary=manifest.geometry.vocabulary, where=str(bundle.tokenizer_path))


def _largest_own_id(tokenizer: Tokenizer, vocabulary: int) -> int:
    """The largest id of the tokenizer's own words, or, where no word at all lies outside the vocabulary, the largest id.

    The list of words is asked for only where it is needed: it takes 10 MB for a vocabulary of 50,000, and some of that
    stays taken. Where the ids below the number of words are all in use, there are no others.
    """
    words = tokenizer.get_vocab_size(with_added_tokens=True)
    if words <= vocabulary and all(tokenizer.id_to_token(id_) is not None for id_ in range(words)):
        return max(words - 1, 0)
    return max(tokenizer.get_vocab(with_added_tokens=False).values(), default=0)


def _unpacked(raw: bytes, *, where: str) -> bytes:
    """Decompressed gzip, up to the limit and no further: a few kilobytes can unpack to gigabytes."""
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = stream.decompress(raw, limits.MAX_TOKENIZER_BYTES)
    except zlib.error as problem:
        raise BundleError(f"{where} is not gzip: {problem}", cure="export the bundle again") from problem
    if not stream.eof or stream.unused_data:
        raise BundleError(
            f"{where} is cut off, has something behind it, or unpacks to more than {limits.MAX_TOKENIZER_BYTES} bytes",
            cure="export the bundle again",
        )
    return unpacked
