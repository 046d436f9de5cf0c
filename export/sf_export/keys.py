"""`sf-export keygen` and `sf-export sign`: who made a bundle."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sf_contract.bundle import SIGNATURE_FILE, open_bundle
from sf_contract.command import ArgumentParser, print_json, say
from sf_contract.errors import UsageError
from sf_contract.key_files import KeyPairText, write_key_pair
from sf_contract.signing import SigningKey, check_signature, new_signing_key, read_signing_key
from sf_export.bundle_writer import sync_folder, write_file

DEFAULT_KEY_FILE: Final = "~/.config/splitfrozen/bundle.key"

_KEYGEN_DESCRIPTION: Final = """\
Make a key to sign bundles with: a private key that stays with whoever makes bundles, and a public key (.pub beside it)
for the devices. Nothing that exists is overwritten."""

_KEYGEN_EPILOG: Final = f"""\
examples:
  sf-export keygen                                      writes {DEFAULT_KEY_FILE} and {DEFAULT_KEY_FILE}.pub
  sf-export keygen --out team.key
  sf-export sign bundles/gpt2-cut4 --key team.key
  sf-edge run --bundle gpt2-cut4 --trust team.key.pub ...

Keep the private key: bundles signed with another one are refused until the devices trust its .pub file too."""

_SIGN_DESCRIPTION: Final = """\
Sign a bundle: check all of it, then write manifest.sig beside its manifest. The bundle's id does not change.
A signature says who made the bundle, not that its model is any good: look at it with sf-export inspect first."""

_SIGN_EPILOG: Final = """\
examples:
  sf-export sign bundles/gpt2-cut4 --key team.key
  sf-export verify bundles/gpt2-cut4 --trust team.key.pub"""


def keygen_command(argv: Sequence[str]) -> int:
    """`sf-export keygen [--out FILE]`.

    Raises:
        UsageError: a file of that name exists, or it cannot be written.
    """
    parser = ArgumentParser(prog="sf-export keygen", description=_KEYGEN_DESCRIPTION, epilog=_KEYGEN_EPILOG)
    parser.add_argument("--out", metavar="FILE", help=f"the private key's file (default: {DEFAULT_KEY_FILE})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = vars(parser.parse_args(argv))
    path = Path(arguments.get("out", DEFAULT_KEY_FILE)).expanduser()
    key = new_signing_key()
    public_path = write_key_pair(path, KeyPairText(secret=key.line(), public=key.public.line()))
    if "json" in arguments:
        print_json({"key_id": key.public.key_id, "signing_key": str(path), "public_key": str(public_path)})
    else:
        print(f"key {key.public.key_id}\n  {path} signs bundles: keep it secret\n  {public_path} goes to the devices")
    return 0


def sign_command(argv: Sequence[str]) -> int:
    """`sf-export sign BUNDLE --key FILE`.

    Raises:
        UsageError: the key file cannot be used.
        BundleError: the bundle is damaged.
    """
    parser = ArgumentParser(prog="sf-export sign", description=_SIGN_DESCRIPTION, epilog=_SIGN_EPILOG)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--key", metavar="FILE", help=f"private key from sf-export keygen (default: {DEFAULT_KEY_FILE})"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = vars(parser.parse_args(argv))
    key = read_signing_key(Path(arguments.get("key", DEFAULT_KEY_FILE)).expanduser())
    bundle_id = sign_bundle(arguments["bundle"], key)
    if "json" in arguments:
        print_json({"bundle": str(arguments["bundle"]), "bundle_id": bundle_id, "signed_by": key.public.key_id})
    else:
        print(f"{arguments['bundle']} {bundle_id} is signed by {key.public.key_id}")
    return 0


def sign_bundle(folder: Path, key: SigningKey) -> str:
    """Check a bundle and put a signature beside its manifest, whole or not at all; the bundle's id.

    Raises:
        BundleError: the bundle is damaged, or carries a signature that is not its own.
        UsageError: the folder cannot be written.
    """
    bundle = open_bundle(folder)
    before = check_signature(bundle, None)
    if before is not None and before.key_id != key.public.key_id:
        say(f"{folder} was signed by {before.key_id}; that signature is replaced")
    # Beside the folder: what an interrupted command leaves inside would make the bundle one with a stranger in it.
    scratch = folder.resolve().parent / f".{folder.name}.{secrets.token_hex(4)}.sig"
    try:
        write_file(scratch, key.sign(bundle.manifest))
        scratch.replace(folder / SIGNATURE_FILE)
        sync_folder(folder)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(
            f"{problem.filename} cannot be written: {problem.strerror}", cure="sign a copy in a folder you may write to"
        ) from problem
    finally:
        scratch.unlink(missing_ok=True)
    return bundle.bundle_id
