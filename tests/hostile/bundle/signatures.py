"""Hostile signatures: the bundle is whole, and signed, but not so that anybody should believe it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from nacl.signing import SigningKey as NaclSigningKey

from hostile.bundle.attacks import attack
from sf_contract.bundle import SIGNATURE_FILE, open_bundle
from sf_contract.manifest import encode_manifest
from sf_contract.signing import Signature, SigningKey
from support.tiny_bundle import write_tiny_bundle

KEY = SigningKey(bytes(range(32)))
STRANGER = SigningKey(bytes(range(1, 33)))
NOT_THEIRS = "one of them was changed"


def _signature(folder: Path, key: SigningKey = KEY) -> Signature:
    return msgspec.json.decode(key.sign(open_bundle(folder).manifest), type=Signature)


def _put(folder: Path, signature: Signature | bytes) -> None:
    raw = signature if isinstance(signature, bytes) else msgspec.json.encode(signature, order="sorted")
    (folder / SIGNATURE_FILE).write_bytes(raw)


@attack(NOT_THEIRS)
def a_signature_with_one_changed_bit(folder: Path) -> None:
    """Forgery by trial."""
    signature = _signature(folder)
    last = "0" if signature.signature[-1] != "0" else "1"
    _put(folder, msgspec.structs.replace(signature, signature=signature.signature[:-1] + last))


@attack(NOT_THEIRS)
def the_signature_of_another_bundle(folder: Path) -> None:
    """A real signature by a trusted key, copied from an older bundle with a known weakness."""
    other = write_tiny_bundle(folder.parent / "other", name="other")
    _put(folder, KEY.sign(open_bundle(other).manifest))


@attack(NOT_THEIRS)
def a_strangers_signature_under_a_trusted_name(folder: Path) -> None:
    """The file says which key; the signature must be by it."""
    _put(folder, msgspec.structs.replace(_signature(folder, STRANGER), public_key=KEY.public.raw.hex()))


@attack(NOT_THEIRS)
def a_signature_made_for_something_else(folder: Path) -> None:
    """The key's owner signed these very bytes in another program, which said nothing of bundles: hence the prefix."""
    signed = NaclSigningKey(bytes(range(32))).sign(encode_manifest(open_bundle(folder).manifest))
    _put(folder, msgspec.structs.replace(_signature(folder), signature=signed.signature.hex()))


@attack(NOT_THEIRS)
def a_key_whose_signatures_anybody_can_make(folder: Path) -> None:
    """The neutral point of the curve is a public key for which one signature fits every text."""
    neutral = (1).to_bytes(32, "little").hex()
    _put(folder, Signature(algorithm="ed25519", public_key=neutral, signature=neutral + "0" * 64))


@attack(NOT_THEIRS)
def the_same_signature_with_another_number(folder: Path) -> None:
    """A signature's second half may be raised by the order of the group and stay valid for careless readers."""
    signature = _signature(folder)
    order = 2**252 + 27742317777372353535851937790883648493
    half = int.from_bytes(bytes.fromhex(signature.signature[64:]), "little") + order
    raised = signature.signature[:64] + half.to_bytes(32, "little").hex()
    _put(folder, msgspec.structs.replace(signature, signature=raised))


@attack("more than")
def a_signature_that_is_too_long(folder: Path) -> None:
    """It is read before anybody is trusted."""
    _put(folder, b'{"algorithm":"ed25519",' + b" " * 5000)


@attack("not a signature")
def an_empty_signature(folder: Path) -> None:
    """An empty file might count as "not signed", or as signed."""
    _put(folder, b"")


@attack("not a signature")
def a_signature_in_another_format(folder: Path) -> None:
    """Raw bytes, as other tools write them."""
    _put(folder, bytes(64))


@attack("not a signature")
def a_signature_by_another_algorithm(folder: Path) -> None:
    """Whoever may choose the algorithm chooses "none"."""
    fields = msgspec.to_builtins(_signature(folder))
    _put(folder, msgspec.json.encode({**fields, "algorithm": "none"}, order="sorted"))


@attack("not a signature")
def a_signature_with_a_remark(folder: Path) -> None:
    """What the signature does not cover, a person might believe."""
    fields = msgspec.to_builtins(_signature(folder))
    _put(folder, msgspec.json.encode({**fields, "remark": "audited"}, order="sorted"))


@attack("canonical form")
def a_signature_with_white_space(folder: Path) -> None:
    """Two files for one signature."""
    _put(folder, msgspec.json.format(KEY.sign(open_bundle(folder).manifest)))


@attack("not a signature")
def a_signature_that_is_too_short(folder: Path) -> None:
    """PyNaCl raises ValueError for it, not its own error."""
    signature = _signature(folder)
    _put(folder, msgspec.structs.replace(signature, signature=signature.signature[:-2]))
