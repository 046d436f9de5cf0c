"""Opening a bundle folder: nothing in it is used before its size and hash agree with the manifest.

A file is hashed when the bundle is opened and again when it is read, and what is used are the bytes that were hashed: a
file exchanged in between is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from sf_contract import limits
from sf_contract.codec import FloatRows
from sf_contract.errors import BundleError
from sf_contract.hashes import sha256
from sf_contract.int4 import Int4Parameters, parameters_from_bytes
from sf_contract.manifest import BundleFile, Manifest, decode_manifest
from sf_contract.plain_files import NotAPlainFile, open_plain, read_plain

MANIFEST_FILE: Final = "manifest.json"
CHECKSUM_FILE: Final = "manifest.sha256"
SIGNATURE_FILE: Final = "manifest.sig"
_HASH_CHUNK_BYTES: Final = 1 * limits.MIB


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were checked when it was opened."""

    folder: Path
    manifest: Manifest
    bundle_id: str

    @property
    def graph_path(self) -> Path:
        """The ONNX graph."""
        return self.folder / self.manifest.graph_file

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer in the `tokenizers` library's JSON format."""
        return self.folder / self.manifest.tokenizer_file

    def read(self, name: str) -> bytes:
        """A file's content, checked again.

        Raises:
            BundleError: it is no longer what it was when the bundle was opened.
        """
        (expected,) = (file for file in self.manifest.files if file.name == name)
        path = self.folder / name
        content = _read_bounded(path, expected.nbytes)
        _check_size(path, len(content), expected)
        _check_hash(path, sha256(content).hexdigest(), expected)
        return content

    def read_signature(self) -> bytes | None:
        """Content of the signature file, not looked into; None without one.

        Raises:
            BundleError: it is no plain file, cannot be read, or is too large to be one.
        """
        path = self.folder / SIGNATURE_FILE
        return _read_bounded(path, limits.MAX_SIGNATURE_BYTES) if os.path.lexists(path) else None

    def self_test_rows(self) -> FloatRows:
        """Reference rows of the test vectors: float32 `[sum of lengths, hidden]`.

        Raises:
            BundleError: a value is not finite, or the file was changed.
        """
        name = self.manifest.self_test.rows_file
        rows = np.frombuffer(self.read(name), dtype="<f4").reshape(-1, self.manifest.geometry.hidden)
        if not np.isfinite(rows).all():
            raise _damaged(f"{self.folder / name} holds a test vector that is not finite")
        return rows

    def int4_parameters(self) -> Int4Parameters | None:
        """What the wire codec int4 needs to decode rows; None for other codecs.

        Raises:
            BundleError: the file was changed, or holds no such parameters.
        """
        name = self.manifest.wire_file
        if name is None:
            return None
        return parameters_from_bytes(
            self.read(name), hidden=self.manifest.geometry.hidden, where=str(self.folder / name)
        )


def open_bundle(folder: Path) -> Bundle:
    """Open and verify a bundle. Whether somebody trusted signed it is another question: `sf_contract.signing`.

    Raises:
        BundleError: the folder is missing, holds links, strange or missing files, or a file's size or hash differs.
    """
    with _our_errors(folder):
        if not folder.is_dir():
            raise BundleError(f"no bundle folder at {folder}", cure="give the folder that sf-export wrote")
    manifest_path = folder / MANIFEST_FILE
    manifest = decode_manifest(_read_bounded(manifest_path, limits.MAX_MANIFEST_BYTES), where=str(manifest_path))
    bundle = Bundle(folder=folder, manifest=manifest, bundle_id=manifest.bundle_id)
    _check_no_strangers(folder, manifest)
    _check_checksum(folder / CHECKSUM_FILE, bundle.bundle_id)
    for file in manifest.files:
        _check_file(folder / file.name, file)
    return bundle


def check_id(bundle: Bundle, wanted: str | None) -> None:
    """Refuse another bundle than the one that is wanted; None wants any.

    Raises:
        BundleError: its id is another.
    """
    if wanted is not None and wanted.lower() != bundle.bundle_id:
        raise BundleError(
            f"{bundle.folder} is bundle {bundle.bundle_id}, not {wanted}",
            cure="compare the whole id with what the bundle's maker gave you, and copy the bundle from there",
        )


def checksum_line(bundle_id: str) -> bytes:
    """Content of the checksum file, in the form `sha256sum --check` reads."""
    return f"{bundle_id}  {MANIFEST_FILE}\n".encode()


def describe_file(path: Path) -> BundleFile:
    """The manifest entry of a file."""
    return BundleFile(name=path.name, nbytes=path.stat().st_size, sha256=sha256_of_file(path))


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256, read in chunks."""
    with path.open("rb") as stream:
        return _hash_of(stream)


def _check_no_strangers(folder: Path, manifest: Manifest) -> None:
    known = {MANIFEST_FILE, CHECKSUM_FILE, SIGNATURE_FILE, *(file.name for file in manifest.files)}
    with _our_errors(folder), os.scandir(folder) as entries:
        stranger = next((entry.name for entry in entries if entry.name not in known), None)
    if stranger is not None:
        raise _damaged(f"{folder / stranger} does not belong to the bundle")


def _check_checksum(path: Path, bundle_id: str) -> None:
    """The checksum file notices a manifest that changed by accident; bundles may come without it."""
    if os.path.lexists(path) and _read_bounded(path, limits.MAX_SIGNATURE_BYTES) != checksum_line(bundle_id):
        raise _damaged(f"{path} and {MANIFEST_FILE} do not belong together: one of them was changed")


def _check_file(path: Path, expected: BundleFile) -> None:
    with _our_errors(path), open_plain(path) as stream:
        _check_size(path, os.fstat(stream.fileno()).st_size, expected)
        found = _hash_of(stream)
    _check_hash(path, found, expected)


def _check_size(path: Path, nbytes: int, expected: BundleFile) -> None:
    if nbytes != expected.nbytes:
        raise _damaged(f"{path} has {nbytes} bytes, the manifest says {expected.nbytes}")


def _check_hash(path: Path, found: str, expected: BundleFile) -> None:
    if found != expected.sha256:
        raise _damaged(
            f"{path} was changed: its sha256 is {found[:12]}..., the manifest says {expected.sha256[:12]}..."
        )


def _hash_of(stream: BinaryIO) -> str:
    digest = sha256()
    while chunk := stream.read(_HASH_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    with _our_errors(path):
        content = read_plain(path, max_bytes=max_bytes)
    if content is None:
        raise _damaged(f"{path} has more than {max_bytes} bytes")
    return content


@contextmanager
def _our_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as problem:
        raise _damaged(f"{path} is missing") from problem
    except NotAPlainFile as problem:
        raise _damaged(f"{path} is not a plain file") from problem
    except OSError as problem:
        raise BundleError(
            f"{path} cannot be read: {problem.strerror}", cure="make the bundle readable for this user"
        ) from problem


def _damaged(what: str) -> BundleError:
    return BundleError(what, cure="export the bundle again and copy the whole folder")
