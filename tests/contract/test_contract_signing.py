"""Signatures of bundles, key files and trust lists."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import VerifyKey

from sf_contract.bundle import MANIFEST_FILE, SIGNATURE_FILE, Bundle, open_bundle
from sf_contract.errors import BundleError, UntrustedBundle, UsageError
from sf_contract.limits import MAX_KEY_FILE_BYTES
from sf_contract.manifest import Manifest
from sf_contract.signing import (
    PublicKey,
    Signature,
    Signer,
    SigningKey,
    TrustList,
    check_signature,
    new_signing_key,
    read_signing_key,
    read_trust_list,
    signature_text,
)
from support.tiny_bundle import tiny_files, tiny_manifest

KEY = SigningKey(bytes(range(32)))
OTHER = SigningKey(bytes(32))


def trust_of(*keys: SigningKey) -> TrustList:
    return TrustList(source="keys", keys=frozenset(key.public for key in keys))


@pytest.fixture
def signed(bundle_folder: Path) -> Bundle:
    """A bundle signed by KEY."""
    bundle = open_bundle(bundle_folder)
    (bundle_folder / SIGNATURE_FILE).write_bytes(KEY.sign(bundle.manifest))
    return bundle


def test_the_signature_is_the_one_rfc_8032_describes() -> None:
    """First test vector of section 7.1: the public key of a seed."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert SigningKey(seed).public.raw.hex() == public


def test_the_signature_is_over_the_prefix_and_the_manifests_bytes(signed: Bundle) -> None:
    """Said in docs/bundle-format.md, so that any other program can check it."""
    fields = msgspec.json.decode((signed.folder / SIGNATURE_FILE).read_bytes())
    content = b"splitfrozen-bundle-v1\0" + (signed.folder / MANIFEST_FILE).read_bytes()
    VerifyKey(bytes.fromhex(fields["public_key"])).verify(content, bytes.fromhex(fields["signature"]))
    assert fields["algorithm"] == "ed25519"


@pytest.mark.parametrize(("trust", "trusted"), [(None, False), (trust_of(KEY), True), (trust_of(OTHER, KEY), True)])
def test_a_signed_bundle_says_by_whom(signed: Bundle, trust: TrustList | None, trusted: bool) -> None:
    signer = check_signature(signed, trust)
    assert signer == Signer(key_id=KEY.public.key_id, trusted=trusted)
    assert KEY.public.key_id in signature_text(signer)


def test_without_a_trust_list_an_unsigned_bundle_is_accepted(bundle_folder: Path) -> None:
    assert check_signature(open_bundle(bundle_folder), None) is None
    assert signature_text(None) == "nobody"


def test_with_a_trust_list_an_unsigned_bundle_is_refused(bundle_folder: Path) -> None:
    with pytest.raises(UntrustedBundle, match="is not signed") as refused:
        check_signature(open_bundle(bundle_folder), trust_of(KEY))
    assert "sf-export sign" in refused.value.cure


def test_with_a_trust_list_an_unknown_signer_is_refused_by_name(signed: Bundle) -> None:
    with pytest.raises(UntrustedBundle, match=f"signed by {KEY.public.key_id}, which is not in keys") as refused:
        check_signature(signed, trust_of(OTHER))
    assert ".pub" in refused.value.cure


@pytest.mark.parametrize("trust", [None, trust_of(KEY), trust_of(OTHER)])
def test_a_bad_signature_is_refused_with_and_without_a_trust_list(signed: Bundle, trust: TrustList | None) -> None:
    other = msgspec.structs.replace(signed.manifest, tools={"python": "3.12"})
    (signed.folder / SIGNATURE_FILE).write_bytes(KEY.sign(other))
    with pytest.raises(BundleError, match="one of them was changed") as refused:
        check_signature(signed, trust)
    assert "maker" in refused.value.cure


@given(raw=st.binary(max_size=400))
def test_any_bytes_are_no_signature(manifest_alone: Manifest, raw: bytes) -> None:
    class Held(Bundle):
        def read_signature(self) -> bytes | None:
            return raw

    with pytest.raises(BundleError):
        check_signature(Held(folder=Path("b"), manifest=manifest_alone, bundle_id=""), None)


@pytest.fixture(scope="module")
def manifest_alone() -> Manifest:
    """A manifest without a folder."""
    return tiny_manifest(tiny_files())


def test_keys_survive_their_files(tmp_path: Path) -> None:
    key = new_signing_key()
    private, public = tmp_path / "key", tmp_path / "key.pub"
    private.write_text(key.line())
    private.chmod(0o600)
    public.write_text(key.public.line())
    assert read_signing_key(private) == key != new_signing_key()
    assert read_trust_list(public).keys == {key.public}
    assert key.line().split()[1] not in repr(key)


def test_a_trust_list_is_a_file_of_keys_or_a_folder_of_them(tmp_path: Path) -> None:
    both = f"# the team\n\n{KEY.public.line()}\n  {OTHER.public.line()}"
    (tmp_path / "team.keys").write_text(both)
    assert read_trust_list(tmp_path / "team.keys").keys == {KEY.public, OTHER.public}
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "a.pub").write_text(KEY.public.line())
    (folder / "b.pub").symlink_to(tmp_path / "team.keys")
    (folder / "README").write_text("what is in here")
    assert read_trust_list(folder).keys == {KEY.public, OTHER.public}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no public key"),
        ("# nobody\n", "holds no public key"),
        (KEY.line(), "holds a splitfrozen-bundle-signing-key"),
        (f"{KEY.public.line()}{KEY.public.line()[:-3]}\n", "something else than"),
        (KEY.public.line().replace("0", "z"), "something else than"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", "something else than"),
        ("x" * (MAX_KEY_FILE_BYTES + 1), "is not a key file"),
        ("clé", "is not a key file"),
    ],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_trust_list_that_is_none_is_refused(tmp_path: Path, content: str, says: str, as_folder: bool) -> None:
    """Never read as "trust nobody" or "trust everybody"."""
    (tmp_path / "keys.pub").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        read_trust_list(tmp_path if as_folder else tmp_path / "keys.pub")


def test_a_missing_trust_list_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_trust_list(tmp_path / "missing")
    with pytest.raises(UsageError, match="holds no public key"):
        read_trust_list(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o602])
def test_a_private_key_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text(KEY.line())
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}") as refused:
        read_signing_key(path)
    assert refused.value.cure == f"chmod 600 {path}"


def test_a_public_key_cannot_sign(tmp_path: Path) -> None:
    path = tmp_path / "key.pub"
    path.write_text(KEY.public.line())
    path.chmod(0o600)
    with pytest.raises(UsageError, match="holds a splitfrozen-bundle-public-key"):
        read_signing_key(path)


def test_keys_with_the_same_id_are_still_different_keys(signed: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id has 64 bits; whoever finds a second key for one gains nothing."""
    monkeypatch.setattr(PublicKey, "key_id", "0" * 16)
    with pytest.raises(UntrustedBundle):
        check_signature(signed, trust_of(OTHER))


def test_the_signature_file_is_canonical_json_of_three_fields(signed: Bundle) -> None:
    raw = (signed.folder / SIGNATURE_FILE).read_bytes()
    assert (
        list(msgspec.json.decode(raw))
        == ["algorithm", "public_key", "signature"]
        == sorted(Signature.__struct_fields__)
    )
    assert len(raw) < 300
