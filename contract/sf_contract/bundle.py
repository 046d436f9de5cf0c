"""Opening a bundle folder: nothing in it is used before its size and hash agree with the manifest."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sf_contract import limits
from sf_contract.codec import FloatRows
from sf_contract.errors import BundleError
from sf_contract.manifest import BundleFile, Manifest, decode_manifest

MANIFEST_FILE: Final = "manifest.json"
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

    def self_test_rows(self) -> FloatRows:
        """Reference rows of the test vectors: float32 `[sum of lengths, hidden]`."""
        hidden = self.manifest.geometry.hidden
        tokens = sum(map(len, self.manifest.self_test.token_ids))
        raw = (self.folder / self.manifest.self_test.rows_file).read_bytes()
        if len(raw) != tokens * hidden * 4:
            raise _damaged(f"{self.folder}: test vectors have {len(raw)} bytes, expected {tokens * hidden * 4}")
        return np.frombuffer(raw, dtype="<f4").reshape(tokens, hidden)


def open_bundle(folder: Path) -> Bundle:
    """Open and verify a bundle.

    Raises:
        BundleError: the folder is missing, holds links, strange or missing files, or a file's size or hash differs.
    """
    if not folder.is_dir():
        raise BundleError(f"no bundle folder at {folder}", cure="give the folder that sf-export wrote")
    manifest_path = folder / MANIFEST_FILE
    nbytes = _regular_file_bytes(manifest_path)
    if nbytes > limits.MAX_MANIFEST_BYTES:
        raise _damaged(f"{manifest_path} has {nbytes} bytes, more than {limits.MAX_MANIFEST_BYTES}")
    manifest = decode_manifest(manifest_path.read_bytes(), where=str(manifest_path))
    _check_no_strangers(folder, manifest)
    for file in manifest.files:
        _check_file(folder / file.name, file)
    return Bundle(folder=folder, manifest=manifest, bundle_id=manifest.bundle_id)


def describe_file(path: Path) -> BundleFile:
    """The manifest entry of a file."""
    return BundleFile(name=path.name, nbytes=path.stat().st_size, sha256=sha256_of_file(path))


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_no_strangers(folder: Path, manifest: Manifest) -> None:
    known = {MANIFEST_FILE, SIGNATURE_FILE, *(file.name for file in manifest.files)}
    for entry in sorted(folder.iterdir()):
        if entry.name not in known:
            raise _damaged(f"{entry} does not belong to the bundle")


def _check_file(path: Path, expected: BundleFile) -> None:
    nbytes = _regular_file_bytes(path)
    if nbytes != expected.nbytes:
        raise _damaged(f"{path} has {nbytes} bytes, the manifest says {expected.nbytes}")
    found = sha256_of_file(path)
    if found != expected.sha256:
        raise _damaged(
            f"{path} was changed: its sha256 is {found[:12]}..., the manifest says {expected.sha256[:12]}..."
        )


def _regular_file_bytes(path: Path) -> int:
    try:
        status = path.lstat()
    except FileNotFoundError as problem:
        raise _damaged(f"{path} is missing") from problem
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(f"{path} is not a plain file")
    return status.st_size


def _damaged(what: str) -> BundleError:
    return BundleError(what, cure="export the bundle again and copy the whole folder")
