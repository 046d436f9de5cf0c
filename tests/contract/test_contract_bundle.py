"""Manifests and bundle folders: canonical form, every kind of tampering, any bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sf_contract import limits
from sf_contract.bundle import MANIFEST_FILE, SIGNATURE_FILE, describe_file, open_bundle
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
    with pytest.raises(BundleError, match="test vectors"):
        open_bundle(bundle_folder).self_test_rows()


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
    except BundleError:
        return
    assert encode_manifest(found) == raw


@given(st.binary(max_size=300))
def test_any_bytes_give_a_manifest_or_are_refused(raw: bytes) -> None:
    is_manifest_or_refused(raw)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, 5000), value=st.integers(0, 255))
def test_one_changed_byte_gives_a_manifest_or_is_refused(manifest: Manifest, index: int, value: int) -> None:
    raw = bytearray(encode_manifest(manifest))
    raw[index % len(raw)] = value
    is_manifest_or_refused(bytes(raw))


@pytest.mark.parametrize(
    "raw", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"null", b"1e999", b"x" * 2_000_000]
)
def test_hostile_bytes_are_refused(raw: bytes) -> None:
    refused(raw)
