"""Manifests and bundle folders: canonical form, every kind of tampering, any bytes."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sf_contract import limits, plain_files
from sf_contract.bundle import (
    CHECKSUM_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    check_id,
    checksum_line,
    describe_file,
    open_bundle,
)
from sf_contract.errors import BundleError
from sf_contract.manifest import Manifest, Task, decode_manifest, encode_manifest

NAMES = ("front.onnx", "tokenizer.json", "self_test.f32")
change = msgspec.structs.replace


def refused(raw: bytes, match: str | None = None) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        decode_manifest(raw, where="manifest.json")
    assert caught.value.cure


def test_an_untouched_bundle_opens(bundle_folder: Path, manifest: Manifest) -> None:
    bundle = open_bundle(bundle_folder)
    assert bundle.manifest == manifest
    assert bundle.bundle_id == manifest.bundle_id
    assert bundle.graph_path.name == "front.onnx"
    assert bundle.tokenizer_path.name == "tokenizer.json"
    assert np.array_equal(bundle.self_test_rows(), np.zeros((3, 8), dtype=np.float32))


def test_a_signature_beside_the_manifest_is_no_stranger(bundle_folder: Path) -> None:
    before = open_bundle(bundle_folder).bundle_id
    (bundle_folder / SIGNATURE_FILE).write_bytes(b"signature")
    assert open_bundle(bundle_folder).bundle_id == before


def test_the_id_is_the_hash_of_the_canonical_bytes(manifest: Manifest) -> None:
    other = change(manifest, tools={"python": "3.12"})
    assert (
        len({manifest.bundle_id, other.bundle_id, decode_manifest(encode_manifest(manifest), where="").bundle_id}) == 2
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["one bit", "longer", "shorter", "missing", "empty", "folder"])
def test_a_file_that_is_not_what_the_manifest_says_is_refused_by_name(bundle_folder: Path, name: str, how: str) -> None:
    path = bundle_folder / name
    content = path.read_bytes()
    path.unlink()
    match how:
        case "one bit":
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        case "longer":
            path.write_bytes(content + b"\0")
        case "shorter":
            path.write_bytes(content[:-1])
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("name", [*NAMES, MANIFEST_FILE])
def test_a_symbolic_link_is_refused_even_to_the_right_content(bundle_folder: Path, tmp_path: Path, name: str) -> None:
    (bundle_folder / name).rename(tmp_path / "elsewhere")
    (bundle_folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize("stranger", ["extra.bin", ".hidden", "front.onnx.data", "folder"])
def test_what_the_manifest_does_not_list_is_refused(bundle_folder: Path, stranger: str) -> None:
    path = bundle_folder / stranger
    path.mkdir() if stranger == "folder" else path.write_bytes(b"")
    with pytest.raises(BundleError, match="does not belong"):
        open_bundle(bundle_folder)


def test_a_missing_folder_a_file_and_a_folder_without_manifest_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path / "empty"):
        with pytest.raises(BundleError):
            open_bundle(path)


def test_a_huge_manifest_is_not_read(bundle_folder: Path) -> None:
    with (bundle_folder / MANIFEST_FILE).open("ab") as stream:
        stream.truncate(limits.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="more than"):
        open_bundle(bundle_folder)


@pytest.mark.parametrize(
    "name", ["../front.onnx", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\n", "x" * 200]
)
@pytest.mark.parametrize("field", ["graph_file", "tokenizer_file", "rows_file", "listed"])
def test_a_name_that_could_lead_out_of_the_folder_is_refused(manifest: Manifest, field: str, name: str) -> None:
    match field:
        case "rows_file":
            changed = change(manifest, self_test=change(manifest.self_test, rows_file=name))
        case "listed":
            changed = change(manifest, files=(change(manifest.files[0], name=name), *manifest.files[1:]))
        case _:
            changed = change(manifest, **{field: name})
    refused(encode_manifest(changed))


def test_test_vectors_of_another_size_are_refused(
    bundle_folder: Path, manifest: Manifest, write_manifest: Callable[[Manifest], None]
) -> None:
    rows = bundle_folder / "self_test.f32"
    rows.write_bytes(bytes(12))
    files = tuple(describe_file(bundle_folder / file.name) for file in manifest.files)
    write_manifest(change(manifest, files=files))
    with pytest.raises(BundleError, match="test vectors of 12 bytes; 3 tokens need 96"):
        open_bundle(bundle_folder)


def test_the_checksum_beside_the_manifest_must_be_its_own(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    (bundle_folder / CHECKSUM_FILE).write_bytes(checksum_line(bundle.bundle_id))
    assert open_bundle(bundle_folder).bundle_id == bundle.bundle_id
    (bundle_folder / CHECKSUM_FILE).write_bytes(checksum_line("0" * 64))
    with pytest.raises(BundleError, match="do not belong together"):
        open_bundle(bundle_folder)


def test_the_checksum_is_what_sha256sum_reads(bundle_folder: Path) -> None:
    (bundle_folder / CHECKSUM_FILE).write_bytes(checksum_line(open_bundle(bundle_folder).bundle_id))
    done = subprocess.run(["sha256sum", "--check", "--strict", CHECKSUM_FILE], cwd=bundle_folder, check=False)
    assert done.returncode == 0


def test_another_bundle_than_the_wanted_one_is_refused(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    check_id(bundle, None)
    check_id(bundle, bundle.bundle_id)
    for wanted in ("", bundle.bundle_id[:12], "0" * 64):
        with pytest.raises(BundleError, match="is bundle"):
            check_id(bundle, wanted)


@pytest.mark.parametrize("name", [*NAMES, MANIFEST_FILE])
def test_a_file_this_user_may_not_read_is_named(
    bundle_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the operating system would say it; for root, nothing is unreadable."""
    opened = os.open

    def deny(path: Path, flags: int) -> int:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags)

    monkeypatch.setattr(plain_files.os, "open", deny)
    with pytest.raises(BundleError, match="cannot be read: Permission denied"):
        open_bundle(bundle_folder)


def test_white_space_key_order_and_unknown_keys_are_refused(manifest: Manifest) -> None:
    raw = encode_manifest(manifest)
    fields = msgspec.json.decode(raw)
    refused(raw + b"\n", "canonical")
    refused(msgspec.json.format(raw), "canonical")
    refused(msgspec.json.encode(dict(reversed(fields.items()))), "canonical")
    refused(msgspec.json.encode({**fields, "zzz": 1}, order="sorted"), "unknown field")
    refused(raw.replace(b'"hidden":8', b'"hidden":8,"hidden":8'), "canonical")


def test_another_format_version_is_named(manifest: Manifest) -> None:
    refused(encode_manifest(change(manifest, format_version=2)), "format version 2; this program reads version 1")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"files": lambda m: m.files[:2]}, "does not list"),
        ({"files": lambda m: (*m.files, m.files[0])}, "twice"),
        ({"files": lambda m: ()}, "files"),
        ({"geometry": lambda m: change(m.geometry, split_layer=2)}, "outside the model"),
        ({"geometry": lambda m: change(m.geometry, hidden=0)}, "hidden"),
        ({"geometry": lambda m: change(m.geometry, max_tokens=limits.MAX_TOKENS_PER_SAMPLE + 1)}, "max_tokens"),
        ({"task": lambda m: change(m.task, labels=("one",))}, "two labels"),
        ({"task": lambda m: change(m.task, labels=("a", "a"))}, "label twice"),
        ({"task": lambda m: change(m.task, task=Task.CAUSAL_LM)}, "no classes"),
        ({"self_test": lambda m: change(m.self_test, token_ids=((1,) * 5000,))}, "too long"),
        ({"self_test": lambda m: change(m.self_test, token_ids=())}, "token_ids"),
        ({"self_test": lambda m: change(m.self_test, max_mean_error=float("nan"))}, "max_mean_error"),
        ({"wire_codec": lambda m: "int3"}, "wire_codec"),
    ],
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(
    manifest: Manifest, changes: dict[str, Callable[[Manifest], object]], says: str
) -> None:
    refused(encode_manifest(change(manifest, **{key: make(manifest) for key, make in changes.items()})), says)


def is_manifest_or_refused(raw: bytes) -> None:
    try:
        found = decode_manifest(raw, where="manifest.json")
    except BundleError as refusal:
        assert refusal.cure
        return
    assert encode_manifest(found) == raw


@given(st.binary(max_size=300))
def test_any_bytes_give_a_manifest_or_are_refused(raw: bytes) -> None:
    is_manifest_or_refused(raw)


SEVERAL = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@SEVERAL
@given(index=st.integers(0, 5000), value=st.integers(0, 255))
def test_one_changed_byte_gives_a_manifest_or_is_refused(manifest: Manifest, index: int, value: int) -> None:
    raw = bytearray(encode_manifest(manifest))
    raw[index % len(raw)] = value
    is_manifest_or_refused(bytes(raw))


@SEVERAL
@given(start=st.integers(0, 2000), length=st.integers(0, 40), put=st.binary(max_size=40))
def test_a_piece_exchanged_for_any_bytes_gives_a_manifest_or_is_refused(
    manifest: Manifest, start: int, length: int, put: bytes
) -> None:
    raw = encode_manifest(manifest)
    start %= len(raw)
    is_manifest_or_refused(raw[:start] + put + raw[start + length :])


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@SEVERAL
@given(choices=st.randoms(use_true_random=False), value=ANY_JSON)
def test_any_value_anywhere_gives_a_manifest_or_is_refused(
    manifest: Manifest, choices: random.Random, value: object
) -> None:
    """The document stays canonical JSON, so the value itself must be judged."""
    fields = msgspec.json.decode(encode_manifest(manifest))
    _put_somewhere(fields, value, choices)
    is_manifest_or_refused(msgspec.json.encode(fields, order="sorted"))


def _put_somewhere(inside: Any, value: object, choices: random.Random) -> None:
    """Replace a random entry of a random part of a JSON document."""
    keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
    key = choices.choice(keys) if keys else None
    if key is None:
        return
    if isinstance(inside[key], dict | list) and inside[key] and choices.random() < 0.8:
        _put_somewhere(inside[key], value, choices)
    else:
        inside[key] = value


@SEVERAL
@given(
    name=st.text(max_size=300),
    label=st.text(min_size=1, max_size=300),
    error=st.floats(min_value=0, max_value=1e6),
    tokens=st.lists(st.integers(0, 12), min_size=3, max_size=3),
)
def test_what_is_accepted_survives_the_round_trip(
    manifest: Manifest, name: str, label: str, error: float, tokens: list[int]
) -> None:
    changed = change(
        manifest,
        base_model=change(manifest.base_model, name=name),
        task=change(manifest.task, labels=("no", label)),
        self_test=change(manifest.self_test, token_ids=(tuple(tokens),), max_mean_error=error),
    )
    printable = all(" " <= sign != "\x7f" and not "\x80" <= sign <= "\x9f" for sign in name + label)
    acceptable = printable and label != "no" and max(tokens) < 10 and max(len(name), len(label)) <= 256
    raw = encode_manifest(changed)
    if acceptable:
        assert decode_manifest(raw, where="manifest.json") == changed
    else:
        refused(raw)


@pytest.mark.parametrize(
    "raw", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"null", b"1e999", b"x" * 2_000_000]
)
def test_hostile_bytes_are_refused(raw: bytes) -> None:
    refused(raw)
