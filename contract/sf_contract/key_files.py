"""Key files: text of one line, a name that says what the key is for and 64 hexadecimal digits.

A private key stands in a plain file that only its owner may use, its public key beside it in a file of the same name with
`.pub` behind it. No file that exists is ever overwritten.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_contract import limits
from sf_contract.errors import UsageError
from sf_contract.hashes import sha256
from sf_contract.plain_files import open_plain, read_plain

PUBLIC_KEY_SUFFIX: Final = ".pub"
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class KeyKind:
    """What one kind of key is called.

    Attributes:
        public_name: first word of a public key's line.
        secret_name: first word of a private key's line.
        spoken: what a person calls the private key.
        maker: the command that makes such files.
    """

    public_name: str
    secret_name: str
    spoken: str
    maker: str


@dataclass(frozen=True, slots=True)
class KeyPairText:
    """The lines of a private key and of its public key."""

    secret: str
    public: str


def key_id(raw: bytes) -> str:
    """A public key's name among people: the first 16 hexadecimal digits of its SHA-256."""
    return sha256(raw).hexdigest()[:16]


def key_line(name: str, raw: bytes) -> str:
    """A key as it stands in its file."""
    return f"{name} {raw.hex()}\n"


def read_public_keys(path: Path, kind: KeyKind) -> list[bytes]:
    """The public keys of a file, one a line; empty lines and lines that begin with `#` are left out.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    lines = [line.strip() for line in _text(_content(path), path, kind).splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    return [_key_of(line, kind.public_name, path=path, kind=kind) for line in wanted]


def read_secret_key(path: Path, kind: KeyKind) -> bytes:
    """The private key of a plain file that belongs to this user and that nobody else may use.

    Raises:
        UsageError: it is missing, another's, open to others, or something else.
    """
    try:
        with open_plain(path, follow_links=True) as stream:
            status = os.fstat(stream.fileno())
            content = stream.read(limits.MAX_KEY_FILE_BYTES + 1)
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"{kind.spoken} {path} belongs to another user (number {status.st_uid})",
            cure=f"use a key of your own, which {kind.maker} makes, or chown the file",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise UsageError(f"{kind.spoken} {path} may be used by others (mode {mode:04o})", cure=f"chmod 600 {path}")
    return _key_of(_text(content, path, kind).strip(), kind.secret_name, path=path, kind=kind)


def public_key_path(path: Path) -> Path:
    """Where the public key of a private key's file stands."""
    return path.with_name(path.name + PUBLIC_KEY_SUFFIX)


def write_key_pair(path: Path, pair: KeyPairText) -> Path:
    """Write a private key that only its owner may use, and its public key; the latter's path.

    Raises:
        UsageError: one of the files exists, or cannot be written; neither is left then.
    """
    public_path = public_key_path(path)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True)
    except OSError as problem:
        raise _unwritable(path, problem) from problem
    try:
        _write_new(path, pair.secret, mode=0o600)
        try:
            _write_new(public_path, pair.public, mode=0o644)
        except OSError:
            path.unlink()
            raise
    except FileExistsError as problem:
        raise UsageError(
            f"{problem.filename} exists, and a key is never overwritten", cure="give another name with --out"
        ) from problem
    except OSError as problem:
        raise _unwritable(path, problem) from problem
    return public_path


def _unwritable(path: Path, problem: OSError) -> UsageError:
    where = problem.filename or path
    return UsageError(f"key file {where} cannot be written: {problem.strerror}", cure="give another --out")


def _write_new(path: Path, text: str, *, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        path.unlink()
        raise


def _content(path: Path) -> bytes | None:
    try:
        return read_plain(path, max_bytes=limits.MAX_KEY_FILE_BYTES, follow_links=True)
    except OSError as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: OSError) -> UsageError:
    return UsageError(f"key file {path} cannot be read: {problem.strerror}", cure="check the path")


def _text(content: bytes | None, path: Path, kind: KeyKind) -> str:
    if content is None or len(content) > limits.MAX_KEY_FILE_BYTES or not content.isascii():
        raise UsageError(f"{path} is not a key file", cure=f"give a file that {kind.maker} wrote")
    return content.decode("ascii")


def _key_of(line: str, name: str, *, path: Path, kind: KeyKind) -> bytes:
    words = line.split()
    if len(words) == 2 and words[0] == name and len(words[1]) == 2 * KEY_BYTES:
        try:
            return bytes.fromhex(words[1])
        except ValueError:
            pass
    other = kind.secret_name if name == kind.public_name else kind.public_name
    raise UsageError(
        f"{path} holds {'a ' + other if words[:1] == [other] else 'something else than a ' + name}",
        cure="give the .pub file" if name == kind.public_name else f"give the file that {kind.maker} wrote",
    )
