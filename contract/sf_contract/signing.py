"""Who made a bundle: Ed25519 signatures and trust lists. A door to PyNaCl, which is loaded when a signature is made or checked.

A signature is over `SIGNED_PREFIX` and the manifest's canonical bytes. The manifest holds the hash of every other file, so
the signature covers the bundle; the prefix keeps it from meaning anything else. Keys are text files of one line,
a name and 64 hexadecimal digits; a trust list is one or more public keys in a file, or a folder of `.pub` files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from sf_contract import key_files, limits
from sf_contract.bundle import SIGNATURE_FILE, Bundle
from sf_contract.errors import BundleError, UntrustedBundle, UsageError
from sf_contract.key_files import PUBLIC_KEY_SUFFIX, KeyKind, key_line
from sf_contract.manifest import Manifest, encode_manifest

SIGNED_PREFIX: Final = b"splitfrozen-bundle-v1\0"
PUBLIC_KEY_NAME: Final = "splitfrozen-bundle-public-key"
SIGNING_KEY_NAME: Final = "splitfrozen-bundle-signing-key"
BUNDLE_KEY: Final = KeyKind(
    public_name=PUBLIC_KEY_NAME, secret_name=SIGNING_KEY_NAME, spoken="signing key", maker="sf-export keygen"
)

Hex32 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Hex64 = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of the signature file, in the same canonical JSON as the manifest."""

    algorithm: Literal["ed25519"]
    public_key: Hex32
    signature: Hex64


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key; `key_id` is for people, comparisons use all of `raw`."""

    raw: bytes

    @property
    def key_id(self) -> str:
        """The first 16 hexadecimal digits of the key's SHA-256."""
        return key_files.key_id(self.raw)

    def line(self) -> str:
        """The key as it stands in a file."""
        return key_line(PUBLIC_KEY_NAME, self.raw)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key; it is never shown."""

    _seed: bytes

    def __repr__(self) -> str:
        return f"SigningKey(key_id={self.public.key_id!r})"

    @property
    def public(self) -> PublicKey:
        """The public key that belongs to it."""
        from nacl.signing import SigningKey as NaclSigningKey  # noqa: PLC0415  # 1.5 MB: only where there is a signature

        return PublicKey(bytes(NaclSigningKey(self._seed).verify_key))

    def line(self) -> str:
        """The key as it stands in a file that nobody else may read."""
        return key_line(SIGNING_KEY_NAME, self._seed)

    def sign(self, manifest: Manifest) -> bytes:
        """Content of the signature file; the same every time."""
        from nacl.signing import SigningKey as NaclSigningKey  # noqa: PLC0415

        signed = NaclSigningKey(self._seed).sign(SIGNED_PREFIX + encode_manifest(manifest))
        return _encoder.encode(
            Signature(algorithm="ed25519", public_key=self.public.raw.hex(), signature=signed.signature.hex())
        )


@dataclass(frozen=True, slots=True)
class TrustList:
    """Public keys whose bundles are accepted, and where they came from."""

    source: str
    keys: frozenset[PublicKey]


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed a bundle; `trusted` is False when nobody asked for trust."""

    key_id: str
    trusted: bool


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Signature)


def new_signing_key() -> SigningKey:
    """A fresh random key."""
    from nacl.signing import SigningKey as NaclSigningKey  # noqa: PLC0415

    return SigningKey(bytes(NaclSigningKey.generate()))


def check_signature(bundle: Bundle, trust: TrustList | None) -> Signer | None:
    """Who signed an opened bundle; None when nobody did and nobody needs to.

    Args:
        trust: whose bundles are accepted; None accepts unsigned bundles and any valid signature, which then says only
            that the manifest is as its unknown signer left it.

    Raises:
        BundleError: there is a signature, and it is not one of this bundle.
        UntrustedBundle: nobody on the trust list signed it.
    """
    raw = bundle.read_signature()
    key = None if raw is None else _signed_by(bundle, raw)
    if trust is None:
        return None if key is None else Signer(key_id=key.key_id, trusted=False)
    if key is None:
        raise UntrustedBundle(
            f"bundle {bundle.folder} is not signed, and {trust.source} asks for a signature",
            cure="have its maker run sf-export sign, or leave out --trust to accept unsigned bundles",
        )
    if key not in trust.keys:
        raise UntrustedBundle(
            f"bundle {bundle.folder} is signed by {key.key_id}, which is not in {trust.source}",
            cure="if you trust its maker, add the maker's .pub file there; otherwise do not use this bundle",
        )
    return Signer(key_id=key.key_id, trusted=True)


def signature_text(signer: Signer | None) -> str:
    """Who signed a bundle, for a person."""
    if signer is None:
        return "nobody"
    return f"{signer.key_id} ({'on the trust list' if signer.trusted else 'no trust list was given'})"


def _signed_by(bundle: Bundle, raw: bytes) -> PublicKey:
    path = bundle.folder / SIGNATURE_FILE
    try:
        found = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise _bad_signature(f"{path} is not a signature: {problem}") from problem
    if _encoder.encode(found) != raw:
        raise _bad_signature(f"{path} is not in canonical form, so it was edited")
    from nacl.exceptions import BadSignatureError  # noqa: PLC0415
    from nacl.signing import VerifyKey  # noqa: PLC0415

    key = PublicKey(bytes.fromhex(found.public_key))
    try:
        VerifyKey(key.raw).verify(SIGNED_PREFIX + encode_manifest(bundle.manifest), bytes.fromhex(found.signature))
    except BadSignatureError as problem:
        raise _bad_signature(
            f"{path} is not {key.key_id}'s signature of this bundle: one of them was changed"
        ) from problem
    return key


def _bad_signature(what: str) -> BundleError:
    return BundleError(what, cure="copy the whole folder again from its maker")


def read_trust_list(path: Path) -> TrustList:
    """The public keys of a file, or of the `.pub` files of a folder.

    Raises:
        UsageError: it is missing, holds no key, or holds something else.
    """
    try:
        files = _public_key_files(path) if path.is_dir() else [path]
    except OSError as problem:
        raise UsageError(f"trust list {path} cannot be read: {problem.strerror}", cure="check the path") from problem
    keys = frozenset(key for file in files for key in _public_keys(file))
    if not keys:
        raise UsageError(f"trust list {path} holds no public key", cure="put the .pub file of a bundle's maker there")
    return TrustList(source=str(path), keys=keys)


def _public_key_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.name.endswith(PUBLIC_KEY_SUFFIX))
    if len(files) > limits.MAX_TRUSTED_KEY_FILES:
        raise UsageError(
            f"trust list {folder} has {len(files)} keys", cure=f"keep at most {limits.MAX_TRUSTED_KEY_FILES}"
        )
    return files


def _public_keys(path: Path) -> list[PublicKey]:
    return [PublicKey(raw) for raw in key_files.read_public_keys(path, BUNDLE_KEY)]


def read_signing_key(path: Path) -> SigningKey:
    """The private key of a file that only its owner may read.

    Raises:
        UsageError: it is missing, another's, open to others, or something else.
    """
    return SigningKey(key_files.read_secret_key(path, BUNDLE_KEY))
