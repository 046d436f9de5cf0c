"""Writing a bundle folder: all of it or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from sf_contract import limits
from sf_contract.bundle import CHECKSUM_FILE, MANIFEST_FILE, SIGNATURE_FILE, checksum_line
from sf_contract.errors import BundleError, DiskFull, UsageError
from sf_contract.manifest import BundleFile, Manifest, decode_manifest, encode_manifest
from sf_contract.plain_files import read_plain


def check_target(target: Path) -> None:
    """Refuse to write over anything that is not a bundle, or a folder that holds more than one.

    Raises:
        UsageError: the target exists and is neither a bundle nor an empty folder, or it cannot be made.
    """
    if target.is_symlink() or (target.exists() and not _may_be_replaced(target)):
        raise UsageError(f"{target} exists and is not a bundle", cure="choose another --out, or remove it")
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(
            f"{target} cannot be written: {existing} is not a writable folder", cure="choose another --out"
        )


def _may_be_replaced(target: Path) -> bool:
    if not target.is_dir():
        return False
    names = {entry.name for entry in target.iterdir()}
    if not names:
        return True
    try:
        raw = read_plain(target / MANIFEST_FILE, max_bytes=limits.MAX_MANIFEST_BYTES)
        manifest = decode_manifest(raw or b"", where=str(target))
    except (BundleError, OSError):
        return False
    return names <= {MANIFEST_FILE, CHECKSUM_FILE, SIGNATURE_FILE, *(file.name for file in manifest.files)}


def describe_bytes(name: str, content: bytes) -> BundleFile:
    """The manifest entry of a file that is not written yet."""
    return BundleFile(name=name, nbytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_bundle(
    target: Path, manifest: Manifest, files: Mapping[str, bytes], *, signature: bytes | None = None
) -> None:
    """Write a bundle beside its place, make it durable and move it there; an older bundle is replaced.

    Args:
        target: the bundle's folder.
        manifest: what describes the files.
        files: contents by file name, without the manifest.
        signature: content of the signature file, as `sf_contract.signing` makes it.

    Raises:
        BundleError: no reader would accept this manifest; nothing is written.
        UsageError: the target exists and is no bundle folder.
        DiskFull: there is no room; nothing is left behind.
        OSError: the place cannot be written; nothing is left behind.
    """
    described = encode_manifest(manifest)
    decode_manifest(described, where=f"the manifest of {target}")
    about = {MANIFEST_FILE: described, CHECKSUM_FILE: checksum_line(manifest.bundle_id)}
    if signature is not None:
        about[SIGNATURE_FILE] = signature
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        scratch.mkdir()
        for name, content in {**files, **about}.items():
            write_file(scratch / name, content)
        sync_folder(scratch)
        _put_in_place(scratch, target)
        sync_folder(target.parent)
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        megabytes = sum(map(len, files.values())) / 1e6
        raise DiskFull(
            f"no room left for the bundle {target}, which needs {megabytes:.0f} MB; nothing of it was kept",
            cure="free some space, or give another place with --out",
        ) from problem
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _put_in_place(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.replace(target)
        return
    old = target.parent / f"{scratch.name}.old"
    target.replace(old)
    try:
        scratch.replace(target)
    except OSError:
        old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's own entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
