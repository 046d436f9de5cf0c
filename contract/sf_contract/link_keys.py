"""Keys of the link between device and server: Curve25519, for ZeroMQ's CURVE. A door to PyNaCl, loaded when a key is used.

Both ends have a key of this kind. The private keys never leave their machines; the device is given the server's public key,
and the server a folder with the public keys of its devices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sf_contract import key_files
from sf_contract.errors import UsageError
from sf_contract.key_files import KEY_BYTES, KeyKind, KeyPairText, key_line

LINK_KEY: Final = KeyKind(
    public_name="splitfrozen-link-public-key",
    secret_name="splitfrozen-link-secret-key",
    spoken="link key",
    maker="sf-edge keygen or sf-server keygen",
)
_HEX = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}\Z")


@dataclass(frozen=True, slots=True)
class LinkPublicKey:
    """A public key, 32 bytes; `key_id` is for people, comparisons use all of `raw`."""

    raw: bytes

    @property
    def key_id(self) -> str:
        """The first 16 hexadecimal digits of the key's SHA-256."""
        return key_files.key_id(self.raw)

    @property
    def hex(self) -> str:
        """The key as 64 hexadecimal digits."""
        return self.raw.hex()

    def line(self) -> str:
        """The key as it stands in a file."""
        return key_line(LINK_KEY.public_name, self.raw)


@dataclass(frozen=True, slots=True)
class LinkSecretKey:
    """A private key, 32 bytes; it is never shown."""

    raw: bytes

    def __repr__(self) -> str:
        return f"LinkSecretKey(key_id={self.public.key_id!r})"

    @property
    def public(self) -> LinkPublicKey:
        """The public key that belongs to it."""
        from nacl.public import PrivateKey  # noqa: PLC0415  # 1.5 MB: only where a link is encrypted

        return LinkPublicKey(bytes(PrivateKey(self.raw).public_key))

    def line(self) -> str:
        """The key as it stands in a file that nobody else may read."""
        return key_line(LINK_KEY.secret_name, self.raw)


@dataclass(frozen=True, slots=True)
class WrittenKey:
    """A key that was just made, and its two files."""

    path: Path
    public_path: Path
    public: LinkPublicKey


def new_link_key() -> LinkSecretKey:
    """A fresh random key."""
    from nacl.public import PrivateKey  # noqa: PLC0415

    return LinkSecretKey(bytes(PrivateKey.generate()))


def make_link_key(path: Path) -> WrittenKey:
    """Make a key and write its two files; its folder is made with mode 0700 if it does not exist.

    Raises:
        UsageError: one of the files exists, or cannot be written; neither is left then.
    """
    key = new_link_key()
    public_path = key_files.write_key_pair(path, KeyPairText(secret=key.line(), public=key.public.line()))
    return WrittenKey(path=path, public_path=public_path, public=key.public)


def read_link_key(path: Path) -> LinkSecretKey:
    """The private key of a file that only its owner may use.

    Raises:
        UsageError: it is missing, another's, open to others, or something else.
    """
    return LinkSecretKey(key_files.read_secret_key(path, LINK_KEY))


def read_link_public_keys(path: Path) -> list[LinkPublicKey]:
    """The public keys of a file, one a line.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    return [LinkPublicKey(raw) for raw in key_files.read_public_keys(path, LINK_KEY)]


def public_key_from(given: str) -> LinkPublicKey:
    """The one public key that a person named: 64 hexadecimal digits, or a `.pub` file.

    Raises:
        UsageError: it is neither, or the file holds not exactly one key.
    """
    if _HEX.match(given):
        return LinkPublicKey(bytes.fromhex(given))
    path = Path(given).expanduser()
    keys = read_link_public_keys(path)
    if len(keys) != 1:
        raise UsageError(f"{path} holds {len(keys)} public keys, one is needed", cure="give a file with one key")
    return keys[0]
