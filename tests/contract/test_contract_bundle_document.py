"""docs/bundle-format.md names everything a bundle holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from sf_contract import limits
from sf_contract.bundle import CHECKSUM_FILE, MANIFEST_FILE, SIGNATURE_FILE
from sf_contract.codec import WireCodec
from sf_contract.errors import BundleError, UntrustedBundle
from sf_contract.manifest import FORMAT_VERSION, Manifest, Task
from sf_contract.signing import PUBLIC_KEY_NAME, SIGNED_PREFIX, SIGNING_KEY_NAME, Signature

DOCUMENT = (Path(__file__).parents[2] / "docs" / "bundle-format.md").read_text(encoding="utf-8")


def _field_names(kind: inspect.Type) -> Iterator[str]:
    """Names of all fields of a struct and of the structs inside it."""
    match kind:
        case inspect.StructType(fields=fields):
            for field in fields:
                yield field.encode_name
                yield from _field_names(field.type)
        case inspect.VarTupleType(item_type=item):
            yield from _field_names(item)
        case inspect.UnionType(types=types):
            for member in types:
                yield from _field_names(member)


@pytest.mark.parametrize("kind", [Manifest, Signature])
def test_every_field_is_named(kind: type[msgspec.Struct]) -> None:
    names = set(_field_names(inspect.type_info(kind)))
    assert names >= set(kind.__struct_fields__)
    assert [name for name in sorted(names) if f"`{name}`" not in DOCUMENT] == []


def test_every_value_of_a_closed_set_is_named() -> None:
    assert [value.value for value in (*WireCodec, *Task) if f"`{value.value}`" not in DOCUMENT] == []


def test_files_versions_prefix_and_codes_are_the_programs_own() -> None:
    prefix = SIGNED_PREFIX.decode().rstrip("\0")
    for words in (MANIFEST_FILE, CHECKSUM_FILE, SIGNATURE_FILE, PUBLIC_KEY_NAME, SIGNING_KEY_NAME, prefix):
        assert f"`{words}`" in DOCUMENT
    assert DOCUMENT.startswith(f"# Bundle format, version {FORMAT_VERSION}\n")
    assert f"exit code {UntrustedBundle.exit_code}" in DOCUMENT
    assert f"exit code {BundleError.exit_code}" in DOCUMENT


def test_limits_are_the_programs_own() -> None:
    assert f"| manifest | {limits.MAX_MANIFEST_BYTES // limits.MIB} MiB |" in DOCUMENT
    assert f"| files | {limits.MAX_BUNDLE_FILES}, together {limits.MAX_BUNDLE_BYTES // 2**30} GiB |" in DOCUMENT
    assert f"| tokenizer | {limits.MAX_TOKENIZER_BYTES // limits.MIB} MiB, packed and unpacked |" in DOCUMENT
    assert f"| test vectors | {limits.MAX_SELF_TEST_TOKENS:,} tokens" in DOCUMENT
    assert limits.MAX_GRAPH_BYTES == 2**31 - 1
    sizes = (limits.MAX_HIDDEN, limits.MAX_VOCABULARY, limits.MAX_TOKENS_PER_SAMPLE)
    assert "; ".join(f"{size:,}" for size in sizes) in DOCUMENT
