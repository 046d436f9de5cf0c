"""No single changed byte of a bundle goes unnoticed, whichever file it is in, signed or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile.bundle.conftest import Refusal
from hostile.bundle.signatures import KEY
from sf_contract.bundle import CHECKSUM_FILE, MANIFEST_FILE, SIGNATURE_FILE, open_bundle
from sf_contract.errors import BundleError
from sf_export.keys import sign_bundle
from support.tiny_bundle import GRAPH, TOKENIZER, VECTORS, canonical, manifest_fields, replace_manifest

FLIPS = 200
FILES = (GRAPH, TOKENIZER, VECTORS, MANIFEST_FILE, CHECKSUM_FILE)


@pytest.mark.parametrize("files", [FILES, (*FILES, SIGNATURE_FILE)], ids=["unsigned", "signed"])
def test_every_flipped_byte_is_noticed(folder: Path, verify: Callable[..., Refusal], files: tuple[str, ...]) -> None:
    if SIGNATURE_FILE in files:
        sign_bundle(folder, KEY)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    rng = random.Random(20261124)
    unnoticed = []
    for number in range(FLIPS):
        path = folder / files[number % len(files)]
        content = path.read_bytes()
        position, flip = rng.randrange(len(content)), rng.randrange(1, 256)
        path.write_bytes(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
        judged = verify(folder)
        if judged.code != BundleError.exit_code or judged.out:
            unnoticed.append((path.name, position, flip, judged))
        path.write_bytes(content)
    assert unnoticed == []
    assert verify(folder).code == 0


def test_every_byte_of_the_files_around_the_manifest_matters(folder: Path, verify: Callable[..., Refusal]) -> None:
    """The two small files completely: hexadecimal digits have capital letters, JSON has white space."""
    sign_bundle(folder, KEY)
    for name in (CHECKSUM_FILE, SIGNATURE_FILE):
        path = folder / name
        content = path.read_bytes()
        for position in range(len(content)):
            path.write_bytes(content[:position] + bytes([content[position] ^ 0x20]) + content[position + 1 :])
            assert verify(folder).code == BundleError.exit_code, (name, position)
        path.write_bytes(content)


def test_a_manifest_changed_together_with_its_checksum_is_noticed_by_its_id_only(
    folder: Path, verify: Callable[..., Refusal], tmp_path: Path
) -> None:
    """Hashes say that the bundle is whole, not whose it is: that takes the id, or a signature."""
    wanted = open_bundle(folder).bundle_id
    fields = manifest_fields(folder)
    fields["task"]["labels"] = ["music", "lights"]
    replace_manifest(folder, canonical(fields))
    assert verify(folder).code == 0
    refused = verify(folder, "--id", wanted)
    assert refused.code == BundleError.exit_code
    assert f"not {wanted}" in refused.err
    (tmp_path / "key.pub").write_text(KEY.public.line())
    unsigned = verify(folder, "--trust", str(tmp_path / "key.pub"))
    assert unsigned.code == 25
    assert "is not signed" in unsigned.err


def test_the_right_id_and_a_trusted_signature_are_accepted(
    folder: Path, verify: Callable[..., Refusal], tmp_path: Path
) -> None:
    wanted = sign_bundle(folder, KEY)
    (tmp_path / "key.pub").write_text(KEY.public.line())
    judged = verify(folder, "--id", wanted.upper(), "--trust", str(tmp_path))
    assert judged.code == 0, judged.err
    assert f"signed by {KEY.public.key_id} (on the trust list)" in judged.out
    as_json = verify(folder, "--json")
    assert f'"signed_by": "{KEY.public.key_id}"' in as_json.out
    assert '"trusted": false' in as_json.out
